"""One matrix at a time in few bits: INT4 by ONNX Runtime's own quantizer, INT8 by the largest magnitude of a row."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, DefaultWeightOnlyQuantizer

STEPS = 127
"""Steps from zero to the largest magnitude in symmetric INT8."""

_ROWS = 8_192  # output features at a time: bounds the float32 copies of an output head of 150,000 rows


@dataclass(frozen=True)
class PackedLinear:
    """A linear layer's weight as `MatMulNBits` reads it; the builder takes it for a pre-quantized module.

    Attributes:
        qweight: uint8 [out_features, blocks, block_size / 2], two weights a byte.
        scales: float32 [out_features, blocks]; weight = (nibble - 8) · scale.
        bits: 4.
        group_size: input features that share one scale.
        in_features: K.
        out_features: N.
    """

    qweight: NDArray[np.uint8]
    scales: NDArray[np.float32]
    bits: int
    group_size: int
    in_features: int
    out_features: int


def pack_int4(weight: torch.Tensor, *, block_size: int) -> PackedLinear:
    """Quantize `weight` [out_features, in_features] to symmetric INT4, round to nearest, in blocks along the input.

    Each output feature is quantized by itself, so that doing some of them at a time changes nothing.
    """
    out_features, in_features = weight.shape
    quantizer = DefaultWeightOnlyQuantizer(DefaultWeightOnlyQuantConfig(block_size=block_size, is_symmetric=True))
    packed, scales = zip(*(quantizer.qbits_block_quant(part)[:2] for part in _columns(weight)), strict=True)
    return PackedLinear(
        qweight=np.concatenate(packed),
        scales=np.concatenate(scales),
        bits=4,
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
    """Quantize `weight` [out_features, in_features] to symmetric INT8, round to nearest, a scale for each output."""
    out_features, in_features = weight.shape
    packed = np.empty((in_features, out_features), np.int8)
    scales = np.empty(out_features, np.float32)
    start = 0
    for part in _columns(weight):
        columns = slice(start, start + part.shape[1])
        largest = np.abs(part).max(axis=0)
        scales[columns] = np.where(largest > 0, largest, 1) / STEPS
        packed[:, columns] = np.rint(part / scales[columns])
        start = columns.stop
    return Int8Linear(packed, scales)


def _columns(weight: torch.Tensor) -> Iterator[NDArray[np.float32]]:
    # The quantizer wants a MatMul's operand: float32 [in_features, out_features].
    for start in range(0, weight.shape[0], _ROWS):
        yield weight[start : start + _ROWS].T.contiguous().to(torch.float32).numpy()
