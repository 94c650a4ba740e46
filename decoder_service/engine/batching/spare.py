"""Detects idle cores, on which a prompt can be prefilled while its other media are being encoded.

If the encoder keeps the same cores busy, prefill at the same time takes longer than prefill afterwards: threads wait
for each other at every operation, and then also for the threads of the other process.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from serving.cores import affinity, busy_seconds

LOOK_SECONDS = 0.25
"""Interval of measurements. The kernel counts in hundredths of a second, so a shorter one would be inexact."""

_DISTURBING = 0.1
"""Share of the cores used by other processes from which on a measurement counts as disturbed."""

_MOST_BUSY = 1 / 3
"""Share of the cores that other processes may use. On a machine of many cores, a process that feeds a GPU uses less."""


@dataclass(frozen=True)
class Clocks:
    """CPU times of the cores that this process may use, in seconds.

    Attributes:
        now: Monotonic clock.
        busy: Busy time of the cores, of all processes; None if it is not known.
        own: CPU time of this process.
        cores: Number of cores.
    """

    now: float
    busy: float | None
    own: float
    cores: int


def read_clocks() -> Clocks:
    """The current times."""
    cores = affinity()
    return Clocks(time.perf_counter(), busy_seconds(cores), time.process_time(), len(cores))


class Disturbance:
    """Whether other processes have used the cores since the last call.

    Args:
        read: Reads the times.
    """

    def __init__(self, read: Callable[[], Clocks] = read_clocks) -> None:
        self._read = read
        self._before: Clocks | None = None

    def __call__(self) -> bool:
        """Whether they did for a tenth of the time; False at the first call, or if it is not known."""
        before, self._before = self._before, self._read()
        if before is None or before.busy is None or self._before.busy is None:
            return False
        return _others(before, self._before) > _DISTURBING


class SpareCores:
    """Measures the idle cores every `LOOK_SECONDS` while `look` is called.

    Args:
        read: Reads the times.
    """

    def __init__(self, read: Callable[[], Clocks] = read_clocks) -> None:
        self._read = read
        self._since: Clocks | None = None
        self.spare = False
        """The last result: whether other processes leave most of the cores idle. False if it is not known."""

    def forget(self) -> None:
        """Discard the current interval: the next `look` starts a new one. `spare` keeps its value."""
        self._since = None

    def look(self) -> bool:
        """Measure, if the interval has passed.

        Returns:
            `spare`.
        """
        if self._since is None:
            self._since = self._read()
            return self.spare
        now = self._read()
        seconds = now.now - self._since.now
        if seconds >= LOOK_SECONDS:
            self.spare = _spare(self._since, now)
            self._since = now
        return self.spare


def _spare(before: Clocks, after: Clocks) -> bool:
    return _others(before, after) <= _MOST_BUSY


def _others(before: Clocks, after: Clocks) -> float:
    """Share of the cores' time that other processes used; infinite if it is not known."""
    if before.busy is None or after.busy is None:
        return math.inf
    seconds = after.cores * (after.now - before.now)
    return ((after.busy - before.busy) - (after.own - before.own)) / seconds if seconds > 0 else 0.0
