"""More shapes of each family's small random checkpoints than `make test` has: arguments of their makers."""

from __future__ import annotations

import functools
from typing import Any

import torch

from tests.checkpoints import make_checkpoint, make_qwen2_5_vl, make_qwen3

QWEN3_VL: dict[str, dict[str, Any]] = {
    "two_levels": {"deepstack": (1, 3)},
    "other_mrope": {"mrope_section": (12, 2, 2)},
    "untied": {"tie": False, "attention_bias": True},
    "head_dim_128": {"head_dim": 128, "mrope_section": (24, 20, 20), "seed": 4},
}

QWEN2_5_VL: dict[str, dict[str, Any]] = {
    "other_mrope": {"mrope_section": (12, 2, 2), "tie": False},
    # The published 3B and 7B have heads of 128 with these sections, and groups of 8 and 7 query heads.
    "heads_of_128": {
        "hidden": 896,
        "heads": 7,
        "kv_heads": 1,
        "mrope_section": (16, 24, 24),
        "initializer_range": 0.06,
    },
    "heads_of_3b": {
        "hidden": 2048,
        "heads": 16,
        "kv_heads": 2,
        "layers": 2,
        "mrope_section": (16, 24, 24),
        "vision_hidden": 160,
        "vision_heads": 2,
        "initializer_range": 0.03,
        "vision_initializer_range": 0.12,
    },
    "whole_frames": {"full_attention": (0, 1, 2, 3), "tokens_per_second": 1},
    "windows_alone": {"full_attention": (), "window": 56, "tokens_per_second": 41},
    "odd_windows": {"full_attention": (3, 1), "window": 100, "vision_hidden": 96, "vision_heads": 3, "seed": 4},
    "yarn": {"rope_scaling": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 32}},
    "as_published": {"dialect": "published", "tie": False},
    "deep_encoder": {"vision_depth": 9, "full_attention": (2, 5, 8), "window": 84, "tokens_per_second": 4},
}

QWEN3: dict[str, dict[str, Any]] = {
    # 16 heads of 128 over a hidden size of 1024: the heads together are twice as wide.
    "heads_of_0_6b": {
        "hidden": 1024,
        "heads": 16,
        "kv_heads": 8,
        "head_dim": 128,
        "layers": 2,
        "initializer_range": 0.06,
    },
    # As in the 32B: groups of 8 query heads, 80 of the hidden size for each head of 128, an output head of its own.
    "heads_of_32b": {
        "hidden": 1280,
        "heads": 16,
        "kv_heads": 2,
        "head_dim": 128,
        "layers": 2,
        "tie": False,
        "initializer_range": 0.06,
    },
    "untied": {"tie": False, "heads": 8, "kv_heads": 1, "head_dim": 128, "layers": 3, "dtype": torch.bfloat16},
    "yarn": {
        "head_dim": 16,
        "heads": 6,
        "kv_heads": 3,
        "hidden": 96,
        "context": 256,
        "rope_scaling": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 32},
    },
    "yarn_as_published": {
        "dialect": "published",
        "context": 256,
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    },
    "one_layer": {"layers": 1},
    "nine_layers": {"layers": 9},
}


WITH_ENCODER = {
    **{f"qwen3_vl-{name}": functools.partial(make_checkpoint, **shape) for name, shape in QWEN3_VL.items()},
    **{f"qwen2_5_vl-{name}": functools.partial(make_qwen2_5_vl, **shape) for name, shape in QWEN2_5_VL.items()},
}
"""By family and shape: what makes a checkpoint in a folder."""

TEXT_ONLY = {name: functools.partial(make_qwen3, **shape) for name, shape in QWEN3.items()}
"""Likewise, of models that take text only."""
