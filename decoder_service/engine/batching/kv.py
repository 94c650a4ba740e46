"""Keys and values: one buffer per layer for all rows, of which memory is taken only where it is written.

A row is reserved for the longest request there may be, and costs nothing until then: the pages of an anonymous mapping
are given by the kernel when they are first written, and are given back by `release`. Huge pages are declined: one of
them holds 4,096 tokens of one head, so a short prompt would take the memory of a long one.
"""

from __future__ import annotations

import mmap
import sys
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

# The module names it from Python 3.13 on. Without it Linux may refuse to reserve more than there is.
_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)


Saved = tuple[NDArray[Any], ...]
"""A row's first tokens outside the cache: [heads, tokens, width] of each of its buffers."""


class KvCache:
    """Buffers [rows, heads, length, width], two for each layer: keys, then values.

    Args:
        layers: Layers of the model.
        rows: How many requests lie in it.
        heads: Heads of keys and values.
        length: Most tokens of one request; rounded up to whole pages.
        width: Numbers per head.
        dtype: Of each number.

    Raises:
        OSError: The address space cannot be had.
    """

    def __init__(self, *, layers: int, rows: int, heads: int, length: int, width: int, dtype: DTypeLike) -> None:
        kind = np.dtype(dtype)
        token = width * kind.itemsize
        self.granule = granule(width, kind)
        self.length = -(-length // self.granule) * self.granule
        self.bytes_per_token = token_bytes(layers, heads, width, kind)
        self._stretch = self.length * token
        self._heads = heads
        self._token = token
        shape = (rows, heads, self.length, width)
        self._maps = [_reserve(rows * heads * self._stretch) for _ in range(2 * layers)]
        self.buffers: list[NDArray[Any]] = [np.frombuffer(area, kind).reshape(shape) for area in self._maps]

    def copy(self, source: int, target: int, count: int) -> None:
        """Copy the first `count` tokens of one row into another."""
        for buffer in self.buffers:
            buffer[target, :, :count] = buffer[source, :, :count]

    def save(self, row: int, count: int) -> Saved:
        """Copy the first `count` tokens of a row out of the buffers.

        Raises:
            MemoryError: There is no memory for the copy.
        """
        return tuple(buffer[row, :, :count].copy() for buffer in self.buffers)

    def restore(self, saved: Saved, row: int) -> None:
        """Copy into a row what was saved of the same or another one."""
        for buffer, kept in zip(self.buffers, saved, strict=True):
            buffer[row, :, : kept.shape[1]] = kept

    def swap(self, one: int, other: int, *, lengths: tuple[int, int]) -> None:
        """Exchange two rows, of which the first has `lengths[0]` tokens and the second `lengths[1]`."""
        of_one, of_other = lengths
        for buffer in self.buffers:
            kept = buffer[other, :, :of_other].copy()
            buffer[other, :, :of_one] = buffer[one, :, :of_one]
            buffer[one, :, :of_other] = kept
        if of_one > of_other:
            self.release(one, of_other)
        elif of_other > of_one:
            self.release(other, of_one)

    def release(self, row: int, start: int = 0) -> None:
        """Give back the memory of a row's tokens from `start` on, as far as whole pages hold nothing else."""
        begin = -(-start // self.granule) * self.granule * self._token
        size = self._stretch - begin
        if size <= 0 or not hasattr(mmap, "MADV_DONTNEED"):
            return
        for area in self._maps:
            for head in range(self._heads):
                area.madvise(mmap.MADV_DONTNEED, (row * self._heads + head) * self._stretch + begin, size)


def token_bytes(layers: int, heads: int, width: int, dtype: DTypeLike) -> int:
    """Bytes that one token takes, keys and values of all layers together."""
    return 2 * layers * heads * width * np.dtype(dtype).itemsize


def granule(width: int, dtype: DTypeLike) -> int:
    """Tokens of one head that fill whole pages: memory is taken and given back in these."""
    token = width * np.dtype(dtype).itemsize
    return int(np.lcm(mmap.PAGESIZE, token)) // token


def _reserve(size: int) -> mmap.mmap:
    if sys.platform != "linux":
        return mmap.mmap(-1, size)
    area = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE)
    area.madvise(mmap.MADV_NOHUGEPAGE)
    return area
