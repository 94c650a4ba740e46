"""Our own operators for the encoder, for x86 processors with AVX-512 BF16: detection and calls.

Each `.cc` file describes its operator; `hatch_build.py`, next to pyproject.toml, compiles them.
"""

from __future__ import annotations

import ctypes
import enum
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812  # the usual name
from torch import Tensor

from serving.cores import cpu_flags

_LIBRARY = Path(__file__).with_name("operators.so")
# The instruction sets that the compiler may use.
_FLAGS = {
    *("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512_vnni", "avx512_bf16"),
    *("avx2", "bmi2", "f16c", "fma"),
}
_WIDEST_HEAD = 128
_PANEL = 32  # outputs of a panel of packed weights
_MOST_INPUTS = 65_536


class OperatorsError(RuntimeError):
    """The operators cannot be used here. The message gives the cause."""


class _Attention(ctypes.Structure):
    """`Task` of attention.cc."""

    _fields_ = (
        ("qkv", ctypes.c_void_p),
        ("turns", ctypes.c_void_p),
        ("packed", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("frames", ctypes.c_int64),
        ("size", ctypes.c_int64),
        ("heads", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("scale", ctypes.c_float),
    )


class _Linear(ctypes.Structure):
    """`Task` of linear.cc."""

    _fields_ = (
        ("x", ctypes.c_void_p),
        ("factors", ctypes.c_void_p),
        ("shift", ctypes.c_void_p),
        ("rounded", ctypes.c_void_p),
        ("row_scales", ctypes.c_void_p),
        ("corrections", ctypes.c_void_p),
        ("weights", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("other", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("inputs", ctypes.c_int64),
        ("outputs", ctypes.c_int64),
        ("after", ctypes.c_int64),
        ("epsilon", ctypes.c_float),
    )


class After(enum.IntEnum):
    """The operation after a linear layer in the same pass, as in linear.cc."""

    NOTHING = 0
    TANH_GELU = 1
    GELU = 2
    ADD = 3


@dataclass(frozen=True, eq=False)
class RoundedWeights:
    """A linear layer's weights in 8 bits, and the factors of its rows before they are quantized.

    Attributes:
        packed: uint8 [panels, inputs / 4, 32, 4]: the weights with a scale for each output, offset by 128. Inputs and
            outputs are padded.
        scales: float32 [panels x 32].
        bias: float32 [panels x 32].
        factors: float32 [inputs]: factors of the columns of the rows.
        shift: float32 [inputs]: added afterwards, if the rows are normalized.
        epsilon: Epsilon of the normalization before; -1 without one.
        outputs: Number of outputs.
    """

    packed: Tensor
    scales: Tensor
    bias: Tensor
    factors: Tensor
    shift: Tensor
    epsilon: float
    outputs: int

    @classmethod
    def of(
        cls, weight: Tensor, bias: Tensor, *, factors: Tensor, shift: Tensor, epsilon: float | None = None
    ) -> RoundedWeights:
        """Quantize weights.

        Args:
            weight: float32 [outputs, inputs].
            bias: [outputs].
            factors: As above.
            shift: As above.
            epsilon: Epsilon of the normalization before; None without one.
        """
        outputs, inputs = weight.shape
        if inputs > _MOST_INPUTS:
            raise ValueError(f"a layer has {inputs} inputs: the sums of more than {_MOST_INPUTS} can overflow")
        scales = weight.abs().amax(dim=1).div(127).clamp_min(torch.finfo(torch.float32).tiny)
        rest = (0, -inputs % 4, 0, -outputs % _PANEL)
        rounded = F.pad(torch.round(weight / scales[:, None]).to(torch.int8), rest)
        packed = (rounded.view(torch.uint8) ^ 128).view(-1, _PANEL, rounded.shape[1] // 4, 4).transpose(1, 2)
        return cls(
            packed.contiguous(),
            F.pad(scales, rest[2:]),
            F.pad(bias.float(), rest[2:]),
            factors.float().contiguous(),
            shift.float().contiguous(),
            -1.0 if epsilon is None else epsilon,
            outputs,
        )


class Operators:
    """The compiled operators, on PyTorch's threads, as many as `torch.set_num_threads` has set in the calling thread.

    Several threads may use them at once.

    Raises:
        OperatorsError: They were not compiled, the processor lacks instructions, or PyTorch uses another OpenMP
            library.
    """

    def __init__(self) -> None:
        if not _LIBRARY.exists():
            raise OperatorsError("they were not compiled when this package was installed")
        if missing := sorted(_FLAGS - cpu_flags()):
            raise OperatorsError(f"the processor has no {', '.join(missing)}")
        self._parallel = _openmp()
        library = ctypes.CDLL(str(_LIBRARY))
        self._packed_words, self._attend = library.packed_words, library.attend
        self._packed_words.argtypes, self._packed_words.restype = [ctypes.c_int64] * 2, ctypes.c_int64
        self._linear = library.linear
        self._linear.argtypes, self._linear.restype = [ctypes.POINTER(_Linear), ctypes.c_void_p], None
        self._attend.argtypes, self._attend.restype = [ctypes.POINTER(_Attention), ctypes.c_void_p], None

    def attend(self, qkv: Tensor, turns: Tensor, runs: Sequence[tuple[int, int]], heads: int) -> Tensor:
        """Attention of concatenated frames; each row attends to all rows of its frame.

        Args:
            qkv: bfloat16 [rows, 3 x heads x width]: queries, keys and values. The two numbers of each rotated pair are
                adjacent.
            turns: complex64 [rows, width / 2]: rotations of the pairs of queries and keys.
            runs: Rows of a frame, and the number of consecutive frames of that size.
            heads: Number of heads; their width is even and at most 128.

        Returns:
            bfloat16 [rows, heads x width].
        """
        rows, width = len(qkv), qkv.shape[1] // (3 * heads)
        if not attends(width):
            raise ValueError(f"a head's width is {width}: it must be even and at most {_WIDEST_HEAD}")
        _check("qkv", qkv, torch.bfloat16, (rows, 3 * heads * width))
        _check("turns", turns, torch.complex64, (rows, width // 2))
        if sum(size * frames for size, frames in runs) != rows or any(min(run) < 1 for run in runs):
            raise ValueError(f"runs {list(runs)} are not {rows} rows")
        out = torch.empty(rows, heads * width, dtype=torch.bfloat16)
        start = 0
        for size, frames in runs:
            packed = torch.empty(frames * heads * self._packed_words(size, width), dtype=torch.int32)
            task = _Attention(
                qkv=qkv[start:].data_ptr(),
                turns=turns[start:].data_ptr(),
                packed=packed.data_ptr(),
                out=out[start:].data_ptr(),
                frames=frames,
                size=size,
                heads=heads,
                width=width,
                scale=math.log2(math.e) / math.sqrt(width),
            )
            self._attend(ctypes.byref(task), self._parallel)
            start += size * frames
        return out

    def linear(self, x: Tensor, weights: RoundedWeights, after: After, other: Tensor | None = None) -> Tensor:
        """A linear layer in 8 bits.

        Args:
            x: bfloat16 [rows, inputs].
            weights: Its weights.
            after: The operation on the result.
            other: bfloat16 [rows, outputs]: the summand.

        Returns:
            bfloat16 [rows, outputs].
        """
        rows, inputs, outputs = len(x), len(weights.factors), weights.outputs
        _check("x", x, torch.bfloat16, (rows, inputs))
        if (after is After.ADD) != (other is not None):
            raise ValueError(f"what is added must be given with {After.ADD!r} alone")
        if other is not None:
            _check("other", other, torch.bfloat16, (rows, outputs))
        y = torch.empty(rows, outputs, dtype=torch.bfloat16)
        rounded = torch.empty(rows, weights.packed.shape[1] * 4, dtype=torch.int8)
        row_scales, corrections = torch.empty(rows), torch.empty(rows, dtype=torch.int32)
        task = _Linear(
            x=x.data_ptr(),
            factors=weights.factors.data_ptr(),
            shift=weights.shift.data_ptr(),
            rounded=rounded.data_ptr(),
            row_scales=row_scales.data_ptr(),
            corrections=corrections.data_ptr(),
            weights=weights.packed.data_ptr(),
            scales=weights.scales.data_ptr(),
            bias=weights.bias.data_ptr(),
            other=None if other is None else other.data_ptr(),
            y=y.data_ptr(),
            rows=rows,
            inputs=inputs,
            outputs=outputs,
            after=after,
            epsilon=weights.epsilon,
        )
        self._linear(ctypes.byref(task), self._parallel)
        return y


def find_operators(device: torch.device, *, needed: bool = False) -> Operators | None:
    """The operators; None if they cannot be used or PyTorch's attention is faster.

    Args:
        device: Device of the encoder.
        needed: Whether they are required, faster or not.

    Raises:
        OperatorsError: They are required and cannot be used.
    """
    # PyTorch's attention uses AMX if the processor has it.
    if not needed and (device.type != "cpu" or "amx_bf16" in cpu_flags()):
        return None
    try:
        if device.type != "cpu":
            raise OperatorsError(f"they are for the CPU, and the device is {device}")
        return Operators()
    except OperatorsError:
        if needed:
            raise
        return None


def attends(width: int) -> bool:
    """Whether the operators support heads of this width."""
    return width % 2 == 0 and 2 <= width <= _WIDEST_HEAD


def _openmp() -> ctypes.c_void_p:
    """`GOMP_parallel` of the OpenMP library that PyTorch has loaded."""
    root = Path(torch.__file__).parent
    for path in sorted([*root.glob("lib/libgomp*.so*"), *root.parent.glob("torch.libs/libgomp*.so*")]):
        try:
            library = ctypes.CDLL(str(path), mode=os.RTLD_NOLOAD | os.RTLD_NOW)
        except OSError:  # this copy was not loaded
            continue
        return ctypes.cast(library.GOMP_parallel, ctypes.c_void_p)
    raise OperatorsError("this build of PyTorch does not use GNU's OpenMP, on whose threads the operators run")


def _check(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Raise ValueError for an unexpected tensor, since the operators read memory by address."""
    known = tensor.device.type == "cpu" and tensor.dtype is dtype and tensor.shape == shape and tensor.is_contiguous()
    if not known:
        raise ValueError(
            f"{name} must be contiguous {dtype} {list(shape)} on the CPU, and is {tensor.dtype} {list(tensor.shape)}"
        )
