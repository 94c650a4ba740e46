"""The encoder: features of media with DeepStack."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

from vision_service.cost import Cost
from vision_service.families.qwen import encoder
from vision_service.families.qwen3_vl.cost import encoder_cost
from vision_service.families.qwen3_vl.tower import Tower
from vision_service.operators import Operators


class Encoder(encoder.Encoder):
    """Qwen3-VL's vision model: the merged features, then the DeepStack features from the lowest level up."""

    @staticmethod
    def _cost(config: Any, dtype: torch.dtype, *, own_attention: bool) -> Cost:
        return encoder_cost(config, dtype, own_attention=own_attention)

    @staticmethod
    def _make_tower(
        folder: Path, device: torch.device, dtype: torch.dtype, found: Operators | None, int8: bool
    ) -> Tower:
        return Tower(load_model(folder, device=device, dtype=dtype), found, int8=int8)


def load_model(folder: Path, *, device: torch.device, dtype: torch.dtype) -> Qwen3VLVisionModel:
    """Load transformers' model; see `qwen.encoder.load_model`."""
    return encoder.load_model(folder, Qwen3VLVisionModel, device=device, dtype=dtype)
