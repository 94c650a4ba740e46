"""A request's feature rows, which may arrive one medium after another while its prompt is already prefilled."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray


class FeatureRows:
    """Rows of features in several arrays, in the order of the prompt's media.

    One thread puts each array once; another may read the available rows meanwhile.

    Args:
        counts: Rows of each array.
    """

    def __init__(self, counts: Iterable[int]) -> None:
        self._ends = list(itertools.accumulate(counts, initial=0))
        self._arrays: list[NDArray[np.float32] | None] = [None] * (len(self._ends) - 1)
        self._tell: Callable[[], None] = lambda: None

    @classmethod
    def of(cls, *arrays: NDArray[np.float32]) -> FeatureRows:
        """Complete rows, from arrays of float32 [rows, width]."""
        rows = cls(len(array) for array in arrays)
        for index, array in enumerate(arrays):
            rows.put(index, array)
        return rows

    @property
    def count(self) -> int:
        """Number of rows in total."""
        return self._ends[-1]

    @property
    def available(self) -> int:
        """Number of rows that have arrived, from the first one on without a gap."""
        gap = next((index for index, array in enumerate(self._arrays) if array is None), len(self._arrays))
        return self._ends[gap]

    @property
    def complete(self) -> bool:
        """Whether all rows have arrived."""
        return self.available == self.count

    @property
    def arrays(self) -> tuple[NDArray[np.float32], ...]:
        """All arrays. Only when `complete`."""
        return tuple(array for array in self._arrays if array is not None)

    def when_put(self, tell: Callable[[], None]) -> None:
        """Call a function for each later array, in the thread that puts it."""
        self._tell = tell

    def put(self, index: int, array: NDArray[np.float32]) -> None:
        """Add an array, float32 [rows, width]. It is not copied and must not change afterwards.

        Raises:
            ValueError: It has another number of rows, or was put before.
        """
        expected = self._ends[index + 1] - self._ends[index]
        if len(array) != expected or self._arrays[index] is not None:
            raise ValueError(f"array {index} has {len(array)} rows, should have {expected}, and comes once")
        self._arrays[index] = array
        self._tell()

    def rows(self, start: int, stop: int, width: int) -> NDArray[np.float32]:
        """The rows from `start` to `stop`, float32 [stop - start, width].

        Raises:
            ValueError: A row is missing, has another width, or holds a number that is not finite, which would affect
                other requests of the run.
        """
        found = [np.empty((0, width), np.float32)]
        for array, begin in zip(self._arrays, self._ends, strict=False):
            if array is not None and begin < stop and start < begin + len(array):
                found.append(array[max(start - begin, 0) : stop - begin])
        if any(part.ndim != 2 or part.shape[1] != width for part in found):
            raise ValueError(f"features are not {width} wide")
        piece = np.concatenate(found)
        if len(piece) != stop - start:
            raise ValueError(f"of the rows {start} to {stop} of features, {len(piece)} have come")
        if not np.isfinite(piece).all():
            raise ValueError("a feature is not a finite number")
        return piece
