"""What the configs of Qwen's vision families share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exporter.errors import ExportError, ExportProblem
from exporter.families.shared.genai import edge

FIELDS = (
    "depth",
    "hidden_size",
    "hidden_act",
    "intermediate_size",
    "num_heads",
    "in_channels",
    "patch_size",
    "spatial_merge_size",
    "temporal_patch_size",
    "out_hidden_size",
)
"""Fields of every encoder's config that determine its features. Named so that a later transformers, which may write
more fields, does not change a fingerprint."""


_TOKENS = {name: f"{name}_token_id" for name in ("image", "video", "vision_start", "vision_end")}


def check(path: Path, config: Any) -> None:
    """Check that the encoder's features fit the language model, and the tokens the vocabulary.

    Raises:
        ExportError: they do not.
    """
    text, vision = config.text_config, config.vision_config
    if vision.out_hidden_size != text.hidden_size:
        raise ExportError(
            ExportProblem.WIDTHS_DIFFER, config=path, features=vision.out_hidden_size, hidden=text.hidden_size
        )
    for name in _TOKENS.values():
        if not 0 <= getattr(config, name) < text.vocab_size:
            raise ExportError(ExportProblem.TOKEN_OUTSIDE, config=path, token=name)


def tokens(config: Any) -> Mapping[str, int]:
    """Ids of the tokens of media, by their names in bundle.json."""
    return {name: getattr(config, field) for name, field in _TOKENS.items()}


def describe(vision: Any) -> Mapping[str, Any]:
    """The entries `vision` of bundle.json that the families share."""
    return {
        "depth": vision.depth,
        "hidden_size": vision.hidden_size,
        "patch_size": edge(vision.patch_size),
        "temporal_patch_size": edge(vision.temporal_patch_size),
        "spatial_merge_size": vision.spatial_merge_size,
        "in_channels": vision.in_channels,
    }
