"""The KV cache: one buffer per layer for all slots. Memory is allocated only where it is written.

A slot reserves address space for the longest request. The kernel allocates the pages of an anonymous mapping when they
are first written, and `release` frees them. Memory is counted in granules: the tokens of one head that fill a page.
Where no whole number of tokens does, a slot may take up to one page per head and buffer more. Huge pages are disabled:
one huge page holds thousands of tokens of one head, so a short prompt would take the memory of a long one.
"""

from __future__ import annotations

import mmap
import sys
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

# Defined by the module from Python 3.13 on. Without it Linux may refuse to reserve more than the physical memory.
_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)


Saved = tuple[NDArray[Any], ...]
"""The first tokens of a slot, outside the KV cache: [heads, tokens, width] of each buffer."""


class KvCache:
    """Buffers [slots, heads, length, width], two for each layer: keys, then values.

    Args:
        layers: Layers of the model.
        slots: Number of slots, one for each request or cached prefix.
        heads: Heads of keys and values.
        length: Most tokens of one request; rounded up so that the tokens of a head fill whole pages.
        width: Elements per head.
        dtype: Type of each number.

    Raises:
        OSError: The address space cannot be reserved.
    """

    def __init__(self, *, layers: int, slots: int, heads: int, length: int, width: int, dtype: DTypeLike) -> None:
        kind = np.dtype(dtype)
        token = width * kind.itemsize
        self.granule = granule(width, kind)
        whole = int(np.lcm(mmap.PAGESIZE, token)) // token
        self.length = -(-length // whole) * whole
        self.bytes_per_token = token_bytes(layers, heads, width, kind)
        self._stretch = self.length * token
        self._heads = heads
        self._token = token
        shape = (slots, heads, self.length, width)
        self._maps = [_reserve(slots * heads * self._stretch) for _ in range(2 * layers)]
        self.buffers: list[NDArray[Any]] = [np.frombuffer(area, kind).reshape(shape) for area in self._maps]

    def copy(self, source: int, target: int, count: int) -> None:
        """Copy the first `count` tokens of one slot to another."""
        for buffer in self.buffers:
            buffer[target, :, :count] = buffer[source, :, :count]

    def save(self, slot: int, count: int) -> Saved:
        """Return a copy of the first `count` tokens of a slot.

        Raises:
            MemoryError: There is no memory for the copy.
        """
        return tuple(buffer[slot, :, :count].copy() for buffer in self.buffers)

    def restore(self, saved: Saved, slot: int) -> None:
        """Copy saved tokens to the start of a slot, the same or another one."""
        for buffer, kept in zip(self.buffers, saved, strict=True):
            buffer[slot, :, : kept.shape[1]] = kept

    def swap(self, one: int, other: int, *, lengths: tuple[int, int]) -> None:
        """Exchange two slots, which hold `lengths[0]` and `lengths[1]` tokens."""
        of_one, of_other = lengths
        for buffer in self.buffers:
            kept = buffer[other, :, :of_other].copy()
            buffer[other, :, :of_one] = buffer[one, :, :of_one]
            buffer[one, :, :of_other] = kept
        if of_one > of_other:
            self.release(one, of_other)
        elif of_other > of_one:
            self.release(other, of_one)

    def release(self, slot: int, start: int = 0) -> None:
        """Free the memory of a slot's tokens from `start` on, in whole pages that hold nothing else."""
        begin = -(-start * self._token // mmap.PAGESIZE) * mmap.PAGESIZE
        size = self._stretch - begin
        if size <= 0 or not hasattr(mmap, "MADV_DONTNEED"):
            return
        for area in self._maps:
            for head in range(self._heads):
                area.madvise(mmap.MADV_DONTNEED, (slot * self._heads + head) * self._stretch + begin, size)


def token_bytes(layers: int, heads: int, width: int, dtype: DTypeLike) -> int:
    """Bytes of one token: keys and values of all layers."""
    return 2 * layers * heads * width * np.dtype(dtype).itemsize


def granule(width: int, dtype: DTypeLike) -> int:
    """Tokens of one head that fill a page, rounded up: the unit in which memory is counted."""
    return -(-mmap.PAGESIZE // (width * np.dtype(dtype).itemsize))


def _reserve(size: int) -> mmap.mmap:
    if sys.platform != "linux":
        return mmap.mmap(-1, size)
    area = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE)
    area.madvise(mmap.MADV_NOHUGEPAGE)
    return area
