"""The encoder: features of media, by windows and whole frames."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

from vision_service.cost import Cost
from vision_service.families.qwen import encoder
from vision_service.families.qwen2_5_vl.cost import encoder_cost
from vision_service.families.qwen2_5_vl.tower import Tower
from vision_service.operators import Operators


class Encoder(encoder.Encoder):
    """Qwen2.5-VL's vision model: one map of merged features."""

    @staticmethod
    def _cost(config: Any, dtype: torch.dtype, *, own_attention: bool) -> Cost:
        return encoder_cost(config, dtype, own_attention=own_attention)

    @staticmethod
    def _make_tower(
        folder: Path, device: torch.device, dtype: torch.dtype, found: Operators | None, int8: bool
    ) -> Tower:
        return Tower(load_model(folder, device=device, dtype=dtype), found, int8=int8)


def load_model(folder: Path, *, device: torch.device, dtype: torch.dtype) -> Qwen2_5_VisionTransformerPretrainedModel:
    """Load transformers' model; see `qwen.encoder.load_model`."""
    return encoder.load_model(folder, Qwen2_5_VisionTransformerPretrainedModel, device=device, dtype=dtype)
