"""The choice of a site's factors: of several ways to even out its channels, the one that rounding harms least.

What is compared is the squared error of the matrices' outputs on some rows of activations, with weights and activations
rounded as the graph rounds them, over what the outputs are themselves. Not to change anything is among the ways, and
another is taken only where it is clearly better.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from .precision import Phase
from .quantize import STEPS, pack_blocks, pack_int8
from .recipe import Bits, Kind, Recipe, block_of

OUTPUTS = 256
"""Outputs of a matrix that are computed; they are spread evenly over all."""

_SHARES = (0.25, 0.5, 0.75)
"""Of a channel's range, how much goes from its activations into its weights; SmoothQuant's alpha."""

_LEAST_GAIN = 0.25  # of the error: less was chance, and weights that were trained for their rounding lost by it
_OUTLIER = 2.0  # octaves over the median: a factor of four, as in the rule for weights
_MOST = 10.0  # octaves: a channel that is always zero asks for an infinite factor


class Rounding(Protocol):
    """How a graph rounds one matrix and what it multiplies."""

    def weights(self, weight: torch.Tensor, importance: torch.Tensor | None) -> torch.Tensor:
        """Weights [outputs, inputs] as the graph has them, in float32; `importance` [inputs] as in `pack_blocks`."""

    def activations(self, rows: torch.Tensor) -> torch.Tensor:
        """Activations [rows, inputs] as the graph multiplies them, in float32."""


@dataclass(frozen=True)
class BlockRounding:
    """As `MatMulNBits` does it.

    Attributes:
        bits: of a weight.
        block_size: inputs that share one scale at 4 bits.
        rounds_activations: whether activations have 8 bits, with a scale for each block; else they stay as they are.
    """

    bits: Bits
    block_size: int
    rounds_activations: bool

    def weights(self, weight: torch.Tensor, importance: torch.Tensor | None) -> torch.Tensor:
        """See `Rounding`."""
        packed = pack_blocks(weight, bits=self.bits, block_size=self._block(weight), importance=_array(importance))
        integers = torch.from_numpy(packed.qweight)
        if self.bits == 4:
            integers = torch.stack((integers & 15, integers >> 4), dim=-1).flatten(-2)
        values = (integers.float() - 2 ** (self.bits - 1)) * torch.from_numpy(packed.scales)[..., None]
        return torch.as_tensor(values.flatten(1)[:, : packed.in_features])

    def activations(self, rows: torch.Tensor) -> torch.Tensor:
        """See `Rounding`."""
        if not self.rounds_activations:
            return rows
        inputs, block = rows.shape[1], self._block(rows)
        blocks = functional.pad(rows, (0, -inputs % block)).view(len(rows), -1, block)
        return _to_steps(blocks).flatten(1)[:, :inputs]

    def _block(self, values: torch.Tensor) -> int:
        """Inputs that share one scale, of values [n, inputs]."""
        return block_of(self.bits, self.block_size, values.shape[1])


@dataclass(frozen=True)
class OutputRounding:
    """As the INT8 graph does it: a scale for each output of the weights, and for each row of the activations."""

    def weights(self, weight: torch.Tensor, importance: torch.Tensor | None) -> torch.Tensor:
        """See `Rounding`."""
        packed = pack_int8(weight)
        return (torch.from_numpy(packed.weight).float() * torch.from_numpy(packed.scales)).T

    def activations(self, rows: torch.Tensor) -> torch.Tensor:
        """See `Rounding`."""
        return _to_steps(rows)


def roundings_of(
    graph: Phase, *, block_size: int, accuracy_level: int, recipe: Recipe, layers: int
) -> Callable[[Kind, int], Rounding]:
    """How a graph rounds a matrix of a kind in a layer; arguments as in `exporter.family.Checkpoint.write_decoder`."""
    if graph == "int8":
        return lambda kind, layer: OutputRounding()
    return lambda kind, layer: BlockRounding(recipe.bits(kind, layer, layers), block_size, accuracy_level == 4)


@dataclass(frozen=True, eq=False)
class Reader:
    """A matrix that reads a site, in one graph.

    Attributes:
        weight: some of its outputs, float32 [outputs, inputs].
        rounding: how it is rounded.
    """

    weight: torch.Tensor
    rounding: Rounding


def spread_over(count: int) -> list[int]:
    """Indices of at most `OUTPUTS` of `count` outputs, evenly spread."""
    return [int(index) for index in np.unique(np.linspace(0, count - 1, min(OUTPUTS, count)).astype(int))]


def spread(weight: torch.Tensor) -> torch.Tensor:
    """Some outputs of a matrix [outputs, inputs], evenly spread, in float32."""
    return weight[spread_over(len(weight))].float()


def error(rows: torch.Tensor, importance: torch.Tensor, readers: Sequence[Reader], factors: torch.Tensor) -> float:
    """Squared error of the readers' outputs over their squares, summed over the readers.

    Args:
        rows: activations [rows, inputs].
        importance: root mean square of each input [inputs].
        readers: at least one.
        factors: what the activations are multiplied by and the columns divided [inputs].
    """
    total = 0.0
    for reader in readers:
        exact = rows @ reader.weight.T
        weight = reader.rounding.weights(reader.weight / factors, importance * factors)
        rounded = reader.rounding.activations(rows * factors) @ weight.T
        total += float((rounded - exact).square().sum() / exact.square().sum().clamp_min(1e-30))
    return total


def ways(activations: torch.Tensor, weights: torch.Tensor) -> Iterator[torch.Tensor]:
    """Ways to even out channels by both of what is multiplied, as SmoothQuant does it, in powers of two.

    Args:
        activations: the largest magnitude of each channel's activations [channels].
        weights: that of its weights [channels].

    Yields:
        Factors of the activations [channels]: of all channels, and of those alone that are outliers.
    """
    active, heavy = _octaves(activations), _octaves(weights)
    for share in _SHARES:
        octaves = (1 - share) * heavy - share * active
        octaves = (octaves - octaves.median()).clamp(-_MOST, _MOST).round()
        yield torch.exp2(octaves)
        yield torch.exp2(torch.where(active >= _OUTLIER, octaves, 0))


def choose(errors: Sequence[float]) -> int:
    """The index of the least error; the first one's unless another is clearly less."""
    best = int(np.argmin(errors))
    return best if errors[best] < (1 - _LEAST_GAIN) * errors[0] else 0


def _array(values: torch.Tensor | None) -> NDArray[np.float32] | None:
    return None if values is None else values.numpy()


def _octaves(values: torch.Tensor) -> torch.Tensor:
    """Log2 of values over their median."""
    median = values.median()
    if median <= 0:
        return torch.zeros_like(values)
    return torch.log2((values / median).clamp(2**-_MOST, 2**_MOST))


def _to_steps(values: torch.Tensor) -> torch.Tensor:
    """Values [..., n] rounded to multiples of a 127th of the largest magnitude among n."""
    step = values.abs().amax(-1, keepdim=True).clamp_min(1e-30) / STEPS
    return (values / step).round() * step
