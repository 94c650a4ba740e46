"""A low-rank adapter (LoRA) beside a layer's matrices: y = W x + B (A x), in the requests that use it.

Matrices that read the same activations share one A, as they do where a checkpoint stores them merged. A is a linear
layer of its own, `qkv_adapter` and the like; B is the parameter `adapter` of each matrix, multiplied by the adapter's
scale already. So what multiplies a matrix's outputs multiplies B's, too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from exporter.recipe import Kind

ADAPTER = "_adapter"
"""The ending of an A's name; its beginning is a site's of `GROUPS`."""

UP = "adapter"
"""The name of B among a matrix's parameters."""

GROUPS: Mapping[str, tuple[str, tuple[Kind, ...]]] = {
    "qkv": ("self_attn", ("q", "k", "v")),
    "o": ("self_attn", ("o",)),
    "gate_up": ("mlp", ("gate", "up")),
    "down": ("mlp", ("down",)),
}
"""The matrices that share an A, and the part of the layer that they are in."""


def is_of_adapter(name: str) -> bool:
    """Whether a tensor is an A or a B."""
    return name.endswith((f"{ADAPTER}.weight", f".{UP}"))


def attach(layer: Any, shapes: Mapping[str, tuple[int, ...]], prefix: str) -> None:
    """Add the adapter that a checkpoint has for a layer, on the meta device.

    Args:
        layer: with its matrices apart.
        shapes: of the checkpoint's tensors.
        prefix: of the layer's.
    """
    for group, (part, kinds) in GROUPS.items():
        name = f"{prefix}{part}.{group}{ADAPTER}.weight"
        if name not in shapes:
            continue
        rank, inputs = shapes[name]
        owner = getattr(layer, part)
        owner.add_module(group + ADAPTER, nn.Linear(inputs, rank, bias=False, device="meta"))
        for kind in kinds:
            matrix = getattr(owner, f"{kind}_proj")
            up = torch.empty(matrix.out_features, rank, device="meta")
            matrix.register_parameter(UP, nn.Parameter(up, requires_grad=False))


def adapters(layer: Any) -> Mapping[Kind, tuple[str, nn.Linear]]:
    """The name of the group and the A of each matrix that has an adapter."""
    found: dict[Kind, tuple[str, nn.Linear]] = {}
    for group, (part, kinds) in GROUPS.items():
        down = getattr(getattr(layer, part), group + ADAPTER, None)
        if down is not None:
            found |= dict.fromkeys(kinds, (group, down))
    return found


@contextlib.contextmanager
def switched(layer: Any, *, on: bool) -> Iterator[None]:
    """Run a layer with its adapter, or without."""
    hooks = []
    for kind, (group, down) in (adapters(layer) if on else {}).items():
        matrix = getattr(getattr(layer, GROUPS[group][0]), f"{kind}_proj")
        hooks.append(matrix.register_forward_hook(_adding(down)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _adding(down: nn.Linear) -> Any:
    def add(matrix: Any, given: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        return output + functional.linear(down(given[0]), matrix.adapter)

    return add
