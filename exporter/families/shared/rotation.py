"""The table of rotations that a graph looks positions up in.

With LongRoPE there are two sets of frequencies: the short one for sequences of up to `original_max_position_embeddings`
tokens, and the long one for all tokens of a longer sequence. The table has the rows of the short one first; position p
of a longer sequence is row `original_max_position_embeddings` + p (decision 47).
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS


def longest_short(text: Any) -> int | None:
    """Tokens of the longest sequence with the short frequencies; None where there is one set of frequencies."""
    rope = text.rope_parameters
    return int(rope["original_max_position_embeddings"]) if rope.get("rope_type") == "longrope" else None


def table(rotary: Any, text: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines, float32 [rows, frequencies].

    Args:
        rotary: transformers' module for the language model.
        text: its config.
    """
    sets = [(rotary.inv_freq, text.max_position_embeddings)]
    short = longest_short(text)
    if short is not None:
        long, _ = ROPE_INIT_FUNCTIONS["longrope"](text, None, seq_len=short + 1)
        sets = [(rotary.inv_freq, short), (long, text.max_position_embeddings)]
    angles = torch.cat([torch.outer(torch.arange(rows).float(), frequencies) for frequencies, rows in sets])
    return angles.cos() * rotary.attention_scaling, angles.sin() * rotary.attention_scaling
