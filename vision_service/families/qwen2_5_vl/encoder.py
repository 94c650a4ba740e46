"""The encoder: features of media, by windows and whole frames."""

from __future__ import annotations

from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

from vision_service.families.qwen import encoder
from vision_service.families.qwen2_5_vl.cost import encoder_cost
from vision_service.families.qwen2_5_vl.tower import Tower


class Encoder(encoder.Encoder):
    """Qwen2.5-VL's vision model: one map of merged features."""

    load_model = encoder.loader(Qwen2_5_VisionTransformerPretrainedModel)
    make_tower = Tower
    cost_of = staticmethod(encoder_cost)
