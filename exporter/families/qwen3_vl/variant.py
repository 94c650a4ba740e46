"""Qwen3-VL: DeepStack, interleaved M-RoPE, norms of queries and keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onnxruntime_genai.models.builders.qwen import Qwen3VLTextModel
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    Qwen3VLTextDecoderLayer,
    Qwen3VLTextRMSNorm,
    Qwen3VLTextRotaryEmbedding,
)

from exporter.families.qwen import encoder
from exporter.families.shared.family import family
from exporter.families.shared.variant import EncoderVariant, Variant
from vision_service.families.qwen3_vl.family import settings_of
from vision_service.families.tower import GELU


def _levels(vision: Any) -> int:
    return len(vision.deepstack_visual_indexes)


def _describe(vision: Any) -> Mapping[str, Any]:
    return {**encoder.describe(vision), "deepstack_visual_indexes": list(vision.deepstack_visual_indexes)}


VARIANT = Variant(
    name="qwen3_vl",
    label="Qwen3-VL",
    title="dense Qwen3-VL",
    config=Qwen3VLConfig,
    model=Qwen3VLForConditionalGeneration,
    layer=Qwen3VLTextDecoderLayer,
    norm=Qwen3VLTextRMSNorm,
    rotary=Qwen3VLTextRotaryEmbedding,
    builder=Qwen3VLTextModel,
    mrope_section=(24, 20, 20),
    encoder=EncoderVariant(
        check=encoder.check,
        tokens=encoder.tokens,
        levels=_levels,
        describe=_describe,
        fields=(*encoder.FIELDS, "num_position_embeddings", "deepstack_visual_indexes"),
        activations=tuple(GELU),
        settings=settings_of,
        # Pixels over all frames of a video (height · width · frames), and how frames are drawn from it.
        video_processor={
            "video_processor_type": "Qwen3VLVideoProcessor",
            "size": {"longest_edge": 25_165_824, "shortest_edge": 4_096},
            "fps": 2,
            "min_frames": 4,
            "max_frames": 768,
            "do_sample_frames": True,
        },
    ),
    genai_type="qwen3_vl",
)

QWEN3_VL = family(VARIANT)
