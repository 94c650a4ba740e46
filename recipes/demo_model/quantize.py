"""INT4 weights as the bundle stores them, imitated in float: blocks of 32 along the input, symmetric, rounded.

Used twice: the last part of training learns weights that survive the rounding, and evaluation measures them.
"""

from __future__ import annotations

import torch

BLOCK = 32


def round_int4(weight: torch.Tensor) -> torch.Tensor:
    """The weight [out, in] after rounding to 4 bits: per block, the largest magnitude becomes -8 steps."""
    blocks = weight.detach().float().reshape(weight.shape[0], -1, BLOCK)
    largest = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))
    scale = largest / -8
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    return ((blocks / scale).round().clamp(-8, 7) * scale).reshape(weight.shape).to(weight.dtype)


def straight_through(weight: torch.Tensor) -> torch.Tensor:
    """The rounded weight, whose gradient passes to the unrounded one."""
    return weight + (round_int4(weight) - weight).detach()
