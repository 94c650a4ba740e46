"""What the families' forward passes share: types, operators, and the parts of a layer."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vision_service.linear import Gelu, Int8Linear, Layer, Linear, MakeLayer
from vision_service.operators import Operators, attends

Runs = Sequence[tuple[int, int]]
"""Rows that attend to each other, and how many groups of that many rows follow one another."""

GELU: dict[str, Gelu] = {"gelu": "none", "gelu_pytorch_tanh": "tanh"}
"""Kinds of GELU: transformers' names and PyTorch's."""

MLP_ROWS = 512
"""Rows that go through the feed-forward part together. Its inner rows are the widest: 512 of them stay in the cache,
while all rows of a large picture would take a gigabyte."""


class Tower:
    """The types and operators of a forward pass.

    Args:
        config: The encoder's config, in the form of transformers.
        device: The device of its weights.
        dtype: The type of its weights.
        head_width: Numbers of a head.
        operators: Our own operators, for attention in bfloat16 on a CPU; None: PyTorch's attention.
        int8: Whether layers are computed in 8 bits, by the operators; values between them are bfloat16.

    Raises:
        ValueError: The layers are to be in 8 bits, and there are no operators.
    """

    def __init__(
        self,
        config: Any,
        device: torch.device,
        dtype: torch.dtype,
        head_width: int,
        operators: Operators | None = None,
        *,
        int8: bool = False,
    ) -> None:
        self.config: Any = config
        """The encoder's config, in the form of transformers."""
        self.device = device
        self.dtype = torch.bfloat16 if int8 else dtype
        """Type of the values between the layers."""
        self.int8 = int8
        """Whether its layers are in 8 bits."""
        self._make: MakeLayer = Linear
        if int8:
            if operators is None:
                raise ValueError("int8 is computed by our operators, and they are not there")
            self._make = functools.partial(Int8Linear, operators)
        fits = device.type == "cpu" and self.dtype is torch.bfloat16 and attends(head_width)
        self._operators = operators if fits else None

    @property
    def own_attention(self) -> bool:
        """Whether attention is computed by our operators."""
        return self._operators is not None


def take(make: MakeLayer, module: nn.Linear, norm: nn.Module | None = None) -> Layer:
    """Move a module's weights to a layer, so that memory holds them once."""
    layer = make(module.weight, module.bias, norm)
    module.weight = None  # type: ignore[assignment]  # the module is not used any more
    return layer


def take_patches(convolution: nn.Module, dtype: torch.dtype) -> Linear:
    """A convolution whose stride is its kernel: a matrix product over the patches."""
    moved: Any = convolution.to(dtype)
    return Linear(moved.weight.flatten(1), moved.bias)


def feed_forward(up: Layer, down: Layer, hidden: Tensor, kind: Gelu) -> None:
    """Add a layer's feed-forward part to `hidden`, in place.

    Args:
        up: To the inner rows, with the normalization before it.
        down: Back.
        hidden: [rows, hidden size].
        kind: The GELU between the two.
    """
    for rows in torch.split(hidden, MLP_ROWS):
        rows.copy_(down.add(up.gelu(rows, kind), rows))
