"""Statistics of repeated measurements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Spread:
    """Statistics of repeated measurements, in their own unit.

    Attributes:
        count: Number of measurements.
        median: Median.
        p90: 90th percentile, interpolated.
        p99: 99th percentile, interpolated.
        least: Minimum.
        greatest: Maximum.
    """

    count: int
    median: float
    p90: float
    p99: float
    least: float
    greatest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Compute the statistics of at least one measurement.

        Raises:
            ValueError: There is none.
        """
        if not values:
            raise ValueError("nothing was measured")
        median, p90, p99 = (float(value) for value in np.percentile(values, (50, 90, 99)))
        return cls(len(values), median, p90, p99, min(values), max(values))
