"""Phi-4-multimodal: merged matrices, LongRoPE on a part of each head, an adapter for requests with images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from onnxruntime_genai.models.builders.phi import Phi3MiniModel
from transformers import Phi4MultimodalConfig, Phi4MultimodalForCausalLM
from transformers.models.phi4_multimodal.modeling_phi4_multimodal import (
    Phi4MultimodalRMSNorm,
    Phi4MultimodalRotaryEmbedding,
)

from exporter.errors import ExportError, ExportProblem, one_line
from exporter.families.shared.family import family
from exporter.families.shared.genai import edge
from exporter.families.shared.variant import EncoderVariant, Variant
from vision_service.families.phi4_multimodal.family import settings_of, used_layers
from vision_service.families.tower import GELU

from . import published
from .adapter import FOLDER
from .layer import SplitDecoderLayer
from .tensors import MODEL, open_tensors, parts

_BIASES = ("attention_bias", "mlp_bias", "lm_head_bias")
_FIELDS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_channels",
    "image_size",
    "patch_size",
    "hidden_act",
    "layer_norm_eps",
    "crop_size",
    "feature_layer",
)


def _translate(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    with_bias = next((name for name in _BIASES if config.get(name)), None)
    if with_bias is not None:
        raise _invalid(path, f"{with_bias} is true")
    if config.get("model_type") != published.MODEL_TYPE:
        return config
    try:
        return published.to_present(config)
    except (LookupError, TypeError, AttributeError) as error:
        raise _invalid(path, one_line(error)) from error


def _check(path: Path, config: Any) -> None:
    # The published window is twice as long as the context.
    if config.sliding_window is not None and config.sliding_window < config.max_position_embeddings:
        raise ExportError(ExportProblem.SLIDING_WINDOW, config=path, field="sliding_window")
    config.sliding_window = None


def _check_encoder(path: Path, config: Any) -> None:
    if not 0 <= config.vision_config.image_token_id < config.vocab_size:
        raise ExportError(ExportProblem.TOKEN_OUTSIDE, config=path, token="image_token_id")  # noqa: S106  # a field
    try:
        used_layers(config.vision_config)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise _invalid(path, f"vision_config: {one_line(error)}") from error


def _tokens(config: Any) -> Mapping[str, int]:
    return {"image": config.vision_config.image_token_id}


def _describe(vision: Any) -> Mapping[str, Any]:
    return {
        "depth": vision.num_hidden_layers,
        "hidden_size": vision.hidden_size,
        "patch_size": edge(vision.patch_size),
        "temporal_patch_size": 1,
        "spatial_merge_size": 2,
        "in_channels": vision.num_channels,
        "crop_size": vision.crop_size,
    }


def _invalid(path: Path, error: str) -> ExportError:
    return ExportError(ExportProblem.CONFIG_INVALID, config=path, model=VARIANT.label, error=error)


VARIANT = Variant(
    name="phi4_multimodal",
    label=MODEL,
    title="Phi-4-multimodal",
    config=Phi4MultimodalConfig,
    model=Phi4MultimodalForCausalLM,
    layer=SplitDecoderLayer,
    norm=Phi4MultimodalRMSNorm,
    rotary=Phi4MultimodalRotaryEmbedding,
    builder=Phi3MiniModel,
    mrope_section=None,
    encoder=EncoderVariant(
        check=_check_encoder,
        tokens=_tokens,
        describe=_describe,
        fields=_FIELDS,
        activations=tuple(GELU),
        settings=settings_of,
        video_processor=None,
    ),
    genai_type=None,
    check=_check,
    rotations=("default", "longrope", "partial"),
    has_mrope=False,
    takes_adapter=True,
    translate=_translate,
    tensors=open_tensors,
    parts=parts,
)

PHI4_MULTIMODAL = replace(family(VARIANT), folders=(FOLDER,))
PHI4_MM = replace(family(VARIANT), architecture="Phi4MMForCausalLM")
"""The published files, whose adapter is among their weights."""
