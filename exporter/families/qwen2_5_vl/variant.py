"""Qwen2.5-VL: narrow features, M-RoPE with its sections in order, biases of queries, keys and values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnxruntime_genai.models.builders.qwen import Qwen25VLTextModel
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.activations import ACT2FN
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VLDecoderLayer,
    Qwen2_5_VLRMSNorm,
    Qwen2_5_VLRotaryEmbedding,
)

from exporter.errors import ExportError, ExportProblem
from exporter.families.qwen import encoder
from exporter.families.shared.family import family
from exporter.families.shared.genai import edge
from exporter.families.shared.variant import EncoderVariant, OtherNames, Variant
from vision_service.families.qwen2_5_vl.family import settings_of


def _describe(vision: Any) -> Mapping[str, Any]:
    return {
        **encoder.describe(vision),
        "window_size": vision.window_size,
        "full_attention_layers": list(vision.fullatt_block_indexes),
        "tokens_per_second": vision.tokens_per_second,
    }


def _check(path: Path, config: Any) -> None:
    vision = config.vision_config
    token = edge(vision.patch_size) * vision.spatial_merge_size
    if vision.window_size < token:
        raise ExportError(ExportProblem.WINDOW_SIZE, config=path, window=vision.window_size, token=token)


VARIANT = Variant(
    name="qwen2_5_vl",
    label="Qwen2.5-VL",
    title="Qwen2.5-VL",
    config=Qwen2_5_VLConfig,
    model=Qwen2_5_VLForConditionalGeneration,
    layer=Qwen2_5_VLDecoderLayer,
    norm=Qwen2_5_VLRMSNorm,
    rotary=Qwen2_5_VLRotaryEmbedding,
    builder=Qwen25VLTextModel,
    mrope_section=(16, 24, 24),
    encoder=EncoderVariant(
        check=encoder.check,
        tokens=encoder.tokens,
        describe=_describe,
        fields=(*encoder.FIELDS, "window_size", "fullatt_block_indexes"),
        activations=tuple(ACT2FN),
        settings=settings_of,
        # Pixels of each frame. The published files have image settings alone; these are the limits of the class that
        # transformers has for videos, and of the tool that Qwen published beside the model.
        video_processor={
            "video_processor_type": "Qwen2VLVideoProcessor",
            "size": {"longest_edge": 602_112, "shortest_edge": 100_352},
            "fps": 2,
            "min_frames": 4,
            "max_frames": 768,
            "do_sample_frames": True,
        },
    ),
    genai_type="qwen2_5_vl",
    check=_check,
    other_names=OtherNames(
        embedding="model.embed_tokens.weight",
        prefixes=(("visual.", "model.visual."), ("model.", "model.language_model.")),
    ),
)

QWEN2_5_VL = family(VARIANT)
