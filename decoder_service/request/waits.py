"""Estimates of waiting times, from the mean duration of requests: how long until one ends, or until one more starts."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

_NEWEST = 0.2
"""Weight of the newest request in the moving average of durations."""

_OVERDUE = 0.25
"""What a request that has taken longer than the mean is expected to take yet, as a share of the mean."""


class Waits:
    """The mean duration of requests, from the start of the prefill to the end, and what follows from it.

    Args:
        slots: Most requests that run at once.
    """

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._mean: float | None = None

    def learn(self, seconds: float) -> None:
        """Record the duration of a request that has ended, for whatever reason."""
        self._mean = seconds if self._mean is None else self._mean + _NEWEST * (seconds - self._mean)

    def until_end(self, elapsed: Sequence[float]) -> float | None:
        """Seconds until the next request ends; None if no duration is known.

        Args:
            elapsed: For each running request, the seconds since its start.
        """
        if self._mean is None:
            return None
        return min((self._left(seconds) for seconds in elapsed), default=self._mean)

    def until_start(self, elapsed: Sequence[float], waiting: int) -> float | None:
        """Seconds until one more request starts, first come first served; None if no duration is known.

        Args:
            elapsed: As for `until_end`.
            waiting: Requests before it that have not started.
        """
        if self._mean is None:
            return None
        free_at = sorted(self._left(seconds) for seconds in elapsed)[-self._slots :]
        free_at += [0.0] * (self._slots - len(free_at))
        heapq.heapify(free_at)
        for _ in range(waiting):
            heapq.heapreplace(free_at, free_at[0] + self._mean)
        return free_at[0]

    def _left(self, elapsed: float) -> float:
        assert self._mean is not None  # noqa: S101  # the callers' condition
        return max(self._mean - elapsed, _OVERDUE * self._mean)
