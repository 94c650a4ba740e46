"""Pixels and features are those of transformers, for every shape that a config can give."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.pictures import noise, png
from tests.vision_service.conftest import LIMITS, error
from tests.vision_service.families.phi4_multimodal.conftest import Made
from vision_service.families.phi4_multimodal.crops import Crops
from vision_service.families.phi4_multimodal.encoder import Encoder
from vision_service.families.phi4_multimodal.preprocess import Picture, Preprocessor
from vision_service.media import Options

CPU = torch.device("cpu")

SIZES = [
    *((1, 1), (56, 56), (57, 55), (112, 168), (100, 60), (60, 100), (70, 30), (45, 28)),
    *((20, 56), (13, 56), (300, 60), (60, 300), (640, 480), (500, 20), (83, 111), (140, 141)),
]
"""One crop and several, whole and with odd paddings, tiny, tall and wide."""

SHAPES: dict[str, dict[str, Any]] = {
    "odd crops": {"image_size": 42, "crop_size": 42},
    "odd crops of five": {"image_size": 70, "crop_size": 70},
    "positions of larger images": {"image_size": 112},
    "positions of smaller images": {"image_size": 28},
    "no whole patches": {"crop_size": 61, "image_size": 61},
    "heads": {"num_attention_heads": 3, "hidden_size": 36, "intermediate_size": 61},
    "one layer": {"num_hidden_layers": 2},
    "the last layer": {"feature_layer": -1},
    "an early layer": {"feature_layer": -4},
    "counted from the front": {"feature_layer": 2},
    "exact GELU": {"hidden_act": "gelu"},
    "patches of eight": {"patch_size": 8, "crop_size": 48, "image_size": 48},
    "one crop": {"dynamic_hd": 1},
    "many crops": {"dynamic_hd": 36},
    "wide": {"hidden": 64},
}


def _prepared(made: Made, sizes: list[tuple[int, int]]) -> tuple[list[Picture], list[Any]]:
    """What the service and what transformers make of noise of these sizes that both take."""
    preprocessor = Preprocessor(made.bundle, LIMITS)
    media, shown = [], []
    for size in sizes:
        try:
            one = made.processor(images=[noise(*size)], return_tensors="pt")
        except ValueError:
            with pytest.raises(Exception, match="no side may have less than 10"):
                preprocessor.prepare("image", png(noise(*size)), Options())
            continue
        medium = preprocessor.prepare("image", png(noise(*size)), Options())
        assert isinstance(medium, Picture)
        media.append(medium)
        shown.append(one)
    return media, shown


def _patches(pixels: torch.Tensor, crops: Crops, patch: int) -> np.ndarray:
    """The patches of the processor's crops that the encoder gets."""

    def cut(one: torch.Tensor, height: int, width: int) -> np.ndarray:
        taken = one[:, : height * patch, : width * patch].reshape(3, height, patch, width, patch)
        return taken.permute(1, 3, 0, 2, 4).reshape(height * width, -1).numpy()

    tiles = [crops.overview, *(tile for row in crops.tiles for tile in row)]
    return np.concatenate([cut(one, tile.height, tile.width) for one, tile in zip(pixels, tiles, strict=True)])


def _check(made: Made, sizes: list[tuple[int, int]]) -> None:
    media, shown = _prepared(made, sizes)
    assert len(media) > len(sizes) // 2
    encoder = Encoder.load(made.bundle.vision_dir, device=CPU, dtype=torch.float32)
    preprocessor = Preprocessor(made.bundle, LIMITS)
    for medium, one, got in zip(media, shown, encoder.encode(media), strict=True):
        (expected,) = made.features(one)
        assert got.shape == expected.shape == (preprocessor.token_count(medium.grid), encoder.feature_width)
        assert error(got, expected) <= 2e-5
        if medium.crops.side * made.model.config.vision_config.patch_size == made.model.crop_size:
            assert np.array_equal(medium.pixel_values(), _patches(one["image_pixel_values"][0], medium.crops, 14))


def test_pixels_and_features_equal_transformers(phi4: Made) -> None:
    """Every pixel value bit for bit, and features to 2e-5: of images packed in one pass."""
    _check(phi4, SIZES)
