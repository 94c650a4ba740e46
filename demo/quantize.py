"""INT4 weights as the bundle stores them, imitated in float: blocks of 32 along the input, symmetric, rounded.

Used twice: the last part of training learns weights that survive the rounding, and evaluation measures them.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn import functional
from transformers import Qwen3VLForConditionalGeneration

BLOCK = 32


def round_int4(weight: torch.Tensor) -> torch.Tensor:
    """The weight [out, in] after rounding to 4 bits: per block, the largest magnitude becomes -8 steps."""
    blocks = weight.detach().float().reshape(weight.shape[0], -1, BLOCK)
    largest = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))
    scale = largest / -8
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    return ((blocks / scale).round().clamp(-8, 7) * scale).reshape(weight.shape).to(weight.dtype)


def text_linears(model: Qwen3VLForConditionalGeneration) -> Iterator[nn.Linear]:
    """The layers that the bundle quantizes: every linear of the text model, and the output head."""
    for module in model.model.language_model.modules():
        if isinstance(module, nn.Linear):
            yield module
    yield model.lm_head


class _RoundedForward:
    """A linear's forward with rounded weights, whose gradient passes to the unrounded ones."""

    def __init__(self, linear: nn.Linear) -> None:
        self._linear = linear

    def __call__(self, value: torch.Tensor) -> torch.Tensor:
        weight = self._linear.weight
        rounded = weight + (round_int4(weight) - weight).detach()
        return functional.linear(value, rounded, self._linear.bias)


def imitate_int4(model: Qwen3VLForConditionalGeneration, enabled: bool = True) -> None:
    """Make the text model compute with rounded weights (embedding rows stay exact), or stop doing so."""
    for linear in text_linears(model):
        if enabled:
            linear.forward = _RoundedForward(linear)  # type: ignore[method-assign, assignment]  # an instance's own forward
        else:
            linear.__dict__.pop("forward", None)
