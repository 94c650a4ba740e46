"""Training sees what the stock preprocessing gives."""

from __future__ import annotations

import random

import pytest
import torch

from demo.scenes import draw_scene
from recipes.demo_model.patches import patches
from tests.recipes.demo_model.stock import image_processor


@pytest.mark.parametrize("size", [(64, 64), (448, 448), (448, 150), (70, 200), (224, 224), (301, 187)])
def test_patches_are_the_stock_processors(size: tuple[int, int]) -> None:
    """Small images are enlarged, large ones reduced; only the last bit differs, by the order of two operations."""
    image = draw_scene(random.Random(1), *size).image
    pixels, grid = patches(image)
    stock = image_processor()([image], return_tensors="pt")
    assert torch.equal(torch.tensor([grid]), stock["image_grid_thw"])
    torch.testing.assert_close(pixels, stock["pixel_values"], rtol=0, atol=1e-6)
    # Negative control: upside down it is another image.
    turned, _ = patches(image.rotate(180))
    assert (turned - stock["pixel_values"]).abs().max() > 0.1
