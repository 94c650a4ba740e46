"""A least-recently-used cache with a limit in bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Recent(Generic[K, V]):
    """Keeps values by key, and evicts the least recently used ones. For one thread.

    Args:
        max_bytes: Most bytes of all values; 0 keeps nothing.
        size: Returns the bytes of a value; constant for each value.
    """

    def __init__(self, max_bytes: int, size: Callable[[V], int]) -> None:
        self._max_bytes = max_bytes
        self._size = size
        self._entries: OrderedDict[K, V] = OrderedDict()  # the most recently used last
        self._nbytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def nbytes(self) -> int:
        """Bytes of all values."""
        return self._nbytes

    def get(self, key: K) -> V | None:
        """The value of the key, or None; it becomes the most recently used."""
        value = self._entries.get(key)
        if value is not None:
            self._entries.move_to_end(key)
        return value

    def put(self, key: K, value: V) -> None:
        """Store a value, replacing the key's previous one. A value larger than `max_bytes` is not stored."""
        self.forget(key)
        size = self._size(value)
        if size > self._max_bytes:
            return
        while self._nbytes + size > self._max_bytes:
            self.forget(next(iter(self._entries)))
        self._entries[key] = value
        self._nbytes += size

    def forget(self, key: K) -> None:
        """Remove the value of a key, if there is one."""
        value = self._entries.pop(key, None)
        if value is not None:
            self._nbytes -= self._size(value)
