"""The decoder's modules, read from a checkpoint when their turn comes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from exporter.choice import spread_over

from .adapter import attach
from .checkpoint import TEXT_PREFIX, Checkpoint

_ROWS = 16_384  # of the output head, looked at together


def read_layer(checkpoint: Checkpoint, index: int) -> Any:
    """One layer with its adapter, in the stored types."""
    prefix = f"{TEXT_PREFIX}layers.{index}."
    with torch.device("meta"):
        layer = checkpoint.variant.layer(checkpoint.text, index)
    attach(layer, {name: ref.shape for name, ref in checkpoint.tensors.items() if name.startswith(prefix)}, prefix)
    return _filled(checkpoint, layer, prefix)


def read_norm(checkpoint: Checkpoint) -> nn.Module:
    """The final norm."""
    with torch.device("meta"):
        norm: nn.Module = checkpoint.variant.norm(checkpoint.text.hidden_size, eps=checkpoint.text.rms_norm_eps)
    return _filled(checkpoint, norm, f"{TEXT_PREFIX}norm.")


def head_rows(checkpoint: Checkpoint) -> Iterator[torch.Tensor]:
    """The rows of the output head [rows, hidden], some at a time."""
    head = checkpoint.tensors[checkpoint.lm_head]
    for start in range(0, head.shape[0], _ROWS):
        yield head.read(slice(start, start + _ROWS))


def spread_head(checkpoint: Checkpoint) -> torch.Tensor:
    """Some rows of the output head, evenly spread, float32 [outputs, hidden]."""
    head = checkpoint.tensors[checkpoint.lm_head]
    return torch.cat([head.read(slice(row, row + 1)) for row in spread_over(head.shape[0])]).float()


def _filled(checkpoint: Checkpoint, module: nn.Module, prefix: str) -> nn.Module:
    state = {name: checkpoint.tensors[prefix + name].read() for name in module.state_dict()}
    module.load_state_dict(state, assign=True)
    return module
