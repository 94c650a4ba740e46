"""Linear layers in floats and in 8 bits, fused with the operations before and after them where possible."""

from __future__ import annotations

from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F  # noqa: N812  # the usual name
from torch import Tensor, nn

from vision_service.operators import After, Operators, RoundedWeights

Gelu = Literal["none", "tanh"]
"""Kinds of GELU, with PyTorch's names: exact, or by tanh."""

_ONEDNN: Any = torch.ops.mkldnn
"""PyTorch's operators over oneDNN, which `torch.compile` also uses. They are not public, but PyTorch is pinned."""

_FEWEST = 2.0  # octaves, a factor of four: a column within it is not changed
_MOST = 10.0  # octaves: a column of zeros would need an infinite factor


class Layer(Protocol):
    """y = x W^T + b, with optional normalization of the rows of x before."""

    def __call__(self, x: Tensor) -> Tensor:
        """[rows, in] to [rows, out]."""

    def gelu(self, x: Tensor, approximate: Gelu) -> Tensor:
        """GELU of the result."""

    def add(self, x: Tensor, other: Tensor) -> Tensor:
        """The result plus `other` [rows, out]."""


class MakeLayer(Protocol):
    """Makes a layer from its weights."""

    def __call__(self, weight: Tensor, bias: Tensor, norm: nn.Module | None = None, /) -> Layer:
        """Make a layer from weights [out, in], a bias [out] and the normalization before it."""


class Linear:
    """A layer in the type of its weights.

    On a CPU the weights are stored in oneDNN's packed layout.

    Args:
        weight: [out, in].
        bias: [out]; None: none.
        norm: Normalization of the rows before.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, norm: nn.Module | None = None) -> None:
        self._packed = weight.device.type == "cpu" and _can_pack(weight.dtype)
        self._weight = _ONEDNN._reorder_linear_weight(weight.contiguous()) if self._packed else weight
        self._bias = bias
        self._norm = norm

    def __call__(self, x: Tensor) -> Tensor:
        """[rows, in] to [rows, out]."""
        x = self._normal(x)
        if self._packed:
            return self._onednn(x, "none")
        return F.linear(x, self._weight, self._bias)

    def gelu(self, x: Tensor, approximate: Gelu) -> Tensor:
        """GELU of the result."""
        x = self._normal(x)
        if self._packed:
            return self._onednn(x, "gelu", approximate)
        return F.gelu(F.linear(x, self._weight, self._bias), approximate=approximate)

    def add(self, x: Tensor, other: Tensor) -> Tensor:
        """The result plus `other` [rows, out]."""
        x = self._normal(x)
        if self._packed:
            added: Tensor = _ONEDNN._linear_pointwise.binary(x, other, self._weight, self._bias, "add")
            return added
        return other + F.linear(x, self._weight, self._bias)

    def _normal(self, x: Tensor) -> Tensor:
        return x if self._norm is None else self._norm(x)

    def _onednn(self, x: Tensor, function: str, algorithm: str = "") -> Tensor:
        done: Tensor = _ONEDNN._linear_pointwise(x, self._weight, self._bias, function, [], algorithm)
        return done


def _can_pack(dtype: torch.dtype) -> bool:
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return dtype is torch.float32 or (dtype is torch.bfloat16 and bool(_ONEDNN._is_mkldnn_bf16_supported()))


class Int8Linear:
    """A layer in 8 bits, with a scale for each output and for each row; input and output rows are bfloat16.

    Channels whose activations are many times as large as the others' would reduce the precision of all others in their
    row. If the weight columns of these channels are smaller by the same factor, the factor is moved from the
    activations to the weights: the row is divided by it before it is quantized. As in the exporter (decision 16), the
    factors depend only on the weights, and are powers of two.

    Args:
        operators: Our own operators, which compute it.
        weight: [out, in].
        bias: [out].
        norm: Normalization of the rows before. The operator computes a LayerNorm itself; another is computed first.
    """

    def __init__(self, operators: Operators, weight: Tensor, bias: Tensor, norm: nn.Module | None = None) -> None:
        self._operators = operators
        self._norm = None if isinstance(norm, nn.LayerNorm) else norm
        weight = weight.float()
        factors = column_factors(weight)
        weight = weight / factors
        shift = torch.zeros_like(factors)
        epsilon = None
        if isinstance(norm, nn.LayerNorm):
            factors, shift, epsilon = factors * norm.weight, factors * norm.bias, norm.eps
        self._weights = RoundedWeights.of(weight, bias, factors=factors, shift=shift, epsilon=epsilon)

    def __call__(self, x: Tensor) -> Tensor:
        """[rows, in] to [rows, out]."""
        return self._operators.linear(self._normal(x), self._weights, After.NOTHING)

    def gelu(self, x: Tensor, approximate: Gelu) -> Tensor:
        """GELU of the result."""
        after = After.GELU if approximate == "none" else After.TANH_GELU
        return self._operators.linear(self._normal(x), self._weights, after)

    def add(self, x: Tensor, other: Tensor) -> Tensor:
        """The result plus `other` [rows, out]."""
        return self._operators.linear(self._normal(x), self._weights, After.ADD, other)

    def _normal(self, x: Tensor) -> Tensor:
        return x if self._norm is None else self._norm(x)


def column_factors(weight: Tensor) -> Tensor:
    """The magnitude of each column relative to the median, as a power of two.

    Args:
        weight: float32 [out, in].

    Returns:
        [in]: the root mean square of a column over the median of all columns, rounded to a power of two; 1 if it is
        within a factor of four.
    """
    squares = weight.square().sum(dim=0)
    median = squares.median()
    if median <= 0:
        return torch.ones_like(squares)
    octaves = (torch.log2(squares / median) / 2).clamp(-_MOST, _MOST)
    return torch.exp2(torch.where(octaves.abs() < _FEWEST, 0, octaves.round()))
