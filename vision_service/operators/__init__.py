"""Operators of our own for the encoder, for x86 processors with AVX-512 BF16: whether they can be used; their calls.

Each `.cc` file says what it computes and how; `hatch_build.py`, beside pyproject.toml, compiles them.
"""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from serving.cores import cpu_flags

_LIBRARY = Path(__file__).with_name("operators.so")
# What the compiler was told that it may use.
_FLAGS = {
    *("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512_vnni", "avx512_bf16"),
    *("avx2", "bmi2", "f16c", "fma"),
}
_WIDEST_HEAD = 128


class OperatorsError(RuntimeError):
    """The operators cannot be used here; its text says why."""


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


class Operators:
    """The compiled operators, on PyTorch's threads: as many as `torch.set_num_threads` said in the thread that calls.

    Several threads may use them at once.

    Raises:
        OperatorsError: They were not compiled, the processor lacks instructions, or PyTorch has other threads.
    """

    def __init__(self) -> None:
        if not _LIBRARY.exists():
            raise OperatorsError("the encoder's operators were not compiled when this package was installed")
        if missing := sorted(_FLAGS - cpu_flags()):
            raise OperatorsError(f"the processor has no {', '.join(missing)}")
        self._parallel = _openmp()
        library = ctypes.CDLL(str(_LIBRARY))
        self._packed_words, self._attend = library.packed_words, library.attend
        self._packed_words.argtypes, self._packed_words.restype = [ctypes.c_int64] * 2, ctypes.c_int64
        self._attend.argtypes, self._attend.restype = [ctypes.POINTER(_Attention), ctypes.c_void_p], None

    def attend(self, qkv: Tensor, turns: Tensor, runs: Sequence[tuple[int, int]], heads: int) -> Tensor:
        """Attention of frames that lie one after another; each row attends to all rows of its frame.

        Args:
            qkv: bfloat16 [rows, 3 x heads x width]: queries, keys and values. The two numbers of a query or key that a
                rotation turns lie side by side.
            turns: complex64 [rows, width / 2]: what the pairs of queries and keys are multiplied by.
            runs: Rows of a frame, and how many such frames follow one another.
            heads: As many heads there are; their width is even and at most 128.

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


def find_operators() -> Operators | None:
    """The operators where they can be used and are the faster ones: PyTorch's use AMX, where the processor has it."""
    if "amx_bf16" in cpu_flags():
        return None
    try:
        return Operators()
    except OperatorsError:
        return None


def attends(width: int) -> bool:
    """Whether attention is computed for heads of this width."""
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
    """The operators read memory by address: a tensor of another kind must not reach them."""
    known = tensor.device.type == "cpu" and tensor.dtype is dtype and tensor.shape == shape and tensor.is_contiguous()
    if not known:
        raise ValueError(
            f"{name} must be contiguous {dtype} {list(shape)} on the CPU, and is {tensor.dtype} {list(tensor.shape)}"
        )
