"""Patches and features are those of transformers, and weights are held once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from serving.bundle import Bundle
from tests.pictures import noise, png
from tests.vision_service.conftest import LIMITS, error
from vision_service.families.qwen2_5_vl.cost import encoder_cost
from vision_service.families.qwen2_5_vl.encoder import Encoder
from vision_service.families.qwen2_5_vl.preprocess import Preprocessor
from vision_service.media import Grid, Options

CPU = torch.device("cpu")
SIZES = [(1, 1), (27, 29), (64, 64), (193, 191), (640, 480), (20, 1000), (1000, 20)]


def test_patches_and_features_equal_transformers(qwen2_5_checkpoint: Path, qwen2_5_bundle: Bundle) -> None:
    """Every pixel value bit for bit, and features to 1e-5: of images packed in one pass."""
    preprocessor = Preprocessor(qwen2_5_bundle, LIMITS)
    encoder = Encoder.load(qwen2_5_bundle.vision_dir, device=CPU, dtype=torch.float32)
    images = Qwen2VLImageProcessorPil.from_pretrained(qwen2_5_checkpoint)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(qwen2_5_checkpoint, dtype=torch.float32).eval()
    media = [preprocessor.prepare("image", png(noise(*size)), Options()) for size in SIZES]
    features = encoder.encode(media)
    for size, medium, got in zip(SIZES, media, features, strict=True):
        expected = images(images=[noise(*size)], return_tensors="np")
        assert medium.grid == tuple(expected["image_grid_thw"][0])
        assert np.array_equal(medium.pixel_values(), expected["pixel_values"])
        with torch.no_grad():
            row = model.model.visual(torch.from_numpy(medium.pixel_values()), grid_thw=torch.tensor([medium.grid]))
        assert got.shape == (medium.grid.patches // 4, encoder.feature_width)
        assert error(got, row.pooler_output) <= 1e-5
    assert encoder.encode([encoder.blank()])[0].shape == (1, encoder.feature_width)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_windows_cost_as_many_patches_alike(dtype: torch.dtype) -> None:
    """With windows alone the cost of a patch does not depend on the frame; each whole layer makes it grow."""
    windows, mixed = (
        encoder_cost(Qwen2_5_VLVisionConfig(hidden_size=1280, fullatt_block_indexes=whole), dtype)
        for whole in ([], [7, 15, 23, 31])
    )
    assert windows.frame(4096) == pytest.approx(16 * windows.frame(256))
    assert mixed.frame(4096) > 16.5 * mixed.frame(256)
    assert mixed.medium(Grid(3, 16, 16)) == pytest.approx(3 * mixed.frame(256))
