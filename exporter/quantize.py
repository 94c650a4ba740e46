"""Symmetric quantization of one matrix at a time: in blocks along the input, or with one scale per output feature.

It needs no data: for each block several scales are tried, and the one with the least squared error is taken. If the
`importance` of each input feature is given, E[x²] over some prompts, squared errors are weighted by it.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from serving.cores import usable_cores

from .recipe import Bits

Vector = NDArray[np.float32]
Matrix = NDArray[np.float32]

STEPS = 127
"""Steps from zero to the largest magnitude in symmetric INT8 with a scale for each output."""

_BLOCKS = 4_096  # searched together: so many stay in a core's cache with their copies
_WEIGHTS = 131_072  # the same number of weights, if an output feature has one scale
_ROWS = 8_192  # output features converted at a time: bounds the float32 copies of an output head of 150,000 rows

# Scales that are tried, as the number of steps from zero to a block's largest magnitude. If the range has fewer steps,
# the largest weights are clipped. Round to nearest is among them (8): weights may have been trained for it.
_SEARCHED: dict[Bits, Sequence[float]] = {4: (7, 7.5, 8, 8.4, 8.8, 9.2, 9.6, 10), 8: (127, 128)}
# With importance, a few input features may decide, so scales are tried on a finer grid.
_SEARCHED_BY_IMPORTANCE: dict[Bits, Sequence[float]] = {
    4: tuple(6 + step / 5 for step in range(21)),
    8: tuple(122 + step for step in range(9)),
}


@dataclass(frozen=True)
class PackedLinear:
    """A linear layer's weight as `MatMulNBits` reads it; the builder takes it for a pre-quantized module.

    Attributes:
        qweight: uint8 [out_features, blocks, block_size · bits / 8]; at 4 bits two weights a byte, the first one low.
        scales: float32 [out_features, blocks], of either sign; weight = (integer - 2^(bits - 1)) · scale.
        bits: 4 or 8.
        group_size: input features that share one scale.
        in_features: K.
        out_features: N.
    """

    qweight: NDArray[np.uint8]
    scales: NDArray[np.float32]
    bits: Bits
    group_size: int
    in_features: int
    out_features: int


def pack_blocks(weight: torch.Tensor, *, bits: Bits, block_size: int, importance: Vector | None = None) -> PackedLinear:
    """Quantize `weight` [out_features, in_features] in blocks along the input, whose scales have least squared error.

    Each block is quantized by itself, so that neither parts nor threads change anything.

    Args:
        weight: of any floating type.
        bits: of an integer.
        block_size: input features that share one scale.
        importance: float32 [in_features], the factor of each input feature's squared errors; None for 1.
    """
    out_features, in_features = weight.shape
    blocks = -(-in_features // block_size)
    padding = (0, blocks * block_size - in_features)  # of the last block
    middle = 2 ** (bits - 1)
    steps = _SEARCHED[bits] if importance is None else _SEARCHED_BY_IMPORTANCE[bits]
    qweight = np.empty((out_features, blocks, block_size * bits // 8), np.uint8)
    scales = np.empty((out_features, blocks), np.float32)
    rows = max(1, _BLOCKS // blocks)
    factors = None
    if importance is not None:
        factors = np.tile(np.pad(importance, padding).reshape(blocks, block_size).T, rows)

    def pack(start: int, part: Matrix) -> None:
        here = slice(start, start + len(part))
        # A block's weights lie in a column, so that everything is computed for all blocks side by side.
        values = np.ascontiguousarray(np.pad(part, ((0, 0), padding)).reshape(-1, block_size).T)
        scale = _least_error(values, steps, middle, None if factors is None else factors[:, : values.shape[1]])
        integers = (_rounded(values, _inverse(scale), middle) + middle).astype(np.uint8)
        if bits == 4:
            integers = integers[::2] | (integers[1::2] << 4)
        qweight[here] = integers.T.reshape(len(part), blocks, -1)
        scales[here] = scale.reshape(len(part), blocks)

    _for_each_part(weight, rows, pack)
    return PackedLinear(
        qweight=qweight,
        scales=scales,
        bits=bits,
        group_size=block_size,
        in_features=in_features,
        out_features=out_features,
    )


@dataclass(frozen=True)
class Int8Linear:
    """A linear layer's weight as ONNX Runtime's integer matmul reads it.

    Attributes:
        weight: int8 [in_features, out_features].
        scales: float32 [out_features]; weight = integer · scale.
    """

    weight: NDArray[np.int8]
    scales: NDArray[np.float32]


def pack_int8(weight: torch.Tensor) -> Int8Linear:
    """Quantize `weight` [out_features, in_features] to symmetric INT8, with a scale for each output.

    The largest magnitude is the end of the range: at 8 bits clipping gains nothing, whatever the inputs are.
    """
    out_features, in_features = weight.shape
    packed = np.empty((in_features, out_features), np.int8)
    scales = np.empty(out_features, np.float32)

    def pack(start: int, part: Matrix) -> None:
        here = slice(start, start + len(part))
        values = np.ascontiguousarray(part.T)
        scale = np.abs(values).max(axis=0) / np.float32(STEPS)
        scale[scale == 0] = 1 / STEPS
        packed[:, here] = np.clip(np.rint(values / scale), -STEPS, STEPS)
        scales[here] = scale

    _for_each_part(weight, max(1, _WEIGHTS // in_features), pack)
    return Int8Linear(packed, scales)


def _for_each_part(weight: torch.Tensor, rows: int, pack: Callable[[int, Matrix], None]) -> None:
    """Call `pack` with the number of the first output and the float32 weights of some outputs, on all cores."""
    with ThreadPoolExecutor(usable_cores()) as threads:
        for start in range(0, len(weight), _ROWS):
            part = weight[start : start + _ROWS].float().numpy()
            starts = range(0, len(part), rows)
            parts = [part[first : first + rows] for first in starts]
            list(threads.map(pack, [start + first for first in starts], parts))


def _least_error(values: Matrix, steps: Sequence[float], middle: int, factors: Matrix | None) -> Vector:
    """For each column, the scale with the least squared error of those that are tried.

    Integers range from -middle to middle - 1, so the value of largest magnitude becomes negative: the scale is negative
    if that value is positive.

    Args:
        values: [n, columns].
        steps: the scales to try, as the number of steps from zero to the largest magnitude.
        middle: the zero point of the unsigned integers.
        factors: of the squared errors, [n, columns]; None for 1.

    Returns:
        [columns]; zero for a column of zeros.
    """
    highest, lowest = values.max(axis=0), values.min(axis=0)
    end = np.where(highest > -lowest, highest, lowest)
    weighted = values if factors is None else values * factors
    scale, best = end / np.float32(-middle), np.full_like(end, -1)
    inverse, rounded, weighted_rounded = _inverse(-end), np.empty_like(values), np.empty_like(values)
    for count in steps:
        _rounded(values, inverse * np.float32(count), middle, out=rounded)
        # The best scale for these integers, and how much less it leaves of Σ f · v²: (Σ f · v · r)² / Σ f · r².
        along = _dot(rounded, weighted)
        size = _dot(rounded, rounded if factors is None else np.multiply(rounded, factors, out=weighted_rounded))
        with np.errstate(divide="ignore", invalid="ignore"):
            gain = along * along / size
            better = gain > best  # never where nothing was left: 0 / 0
            np.copyto(best, gain, where=better)
            np.copyto(scale, along / size, where=better)
    return np.asarray(scale)


def _inverse(scale: Vector) -> Vector:
    return np.asarray(np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0))


def _rounded(values: Matrix, inverse: Vector, middle: int, out: Matrix | None = None) -> Matrix:
    out = np.multiply(values, inverse, out=out)
    return np.clip(np.rint(out, out=out), -middle, middle - 1, out=out)


def _dot(one: Matrix, other: Matrix) -> Vector:
    """The dot product of each pair of columns, summed in the order of the rows."""
    return np.asarray(np.einsum("ij,ij->j", one, other))
