"""The encoder: features of media with DeepStack."""

from __future__ import annotations

from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

from vision_service.families.qwen import encoder
from vision_service.families.qwen3_vl.cost import encoder_cost
from vision_service.families.qwen3_vl.tower import Tower


class Encoder(encoder.Encoder):
    """Qwen3-VL's vision model: the merged features, then the DeepStack features from the lowest level up."""

    load_model = encoder.loader(Qwen3VLVisionModel)
    make_tower = Tower
    cost_of = staticmethod(encoder_cost)
