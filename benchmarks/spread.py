"""Repeated measurements in a few numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Spread:
    """What repeated measurements gave, in their own unit.

    Attributes:
        count: How many there were.
        median: Half of them were no more.
        p90: Nine in ten were no more; between two measurements, interpolated.
        p99: Ninety-nine in a hundred were no more, in the same way.
        least: The least of them.
        greatest: The greatest of them.
    """

    count: int
    median: float
    p90: float
    p99: float
    least: float
    greatest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one measurement.

        Raises:
            ValueError: There is none.
        """
        if not values:
            raise ValueError("nothing was measured")
        median, p90, p99 = (float(value) for value in np.percentile(values, (50, 90, 99)))
        return cls(len(values), median, p90, p99, min(values), max(values))
