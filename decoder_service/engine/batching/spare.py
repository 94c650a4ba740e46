"""Whether cores are idle on which a prompt could be read while its other media are being encoded.

Where the encoder computes on the same cores and keeps them busy, reading at the same time takes longer than reading
after it: threads wait for each other at every operation, and now for those of the other process, too.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from serving.cores import affinity, busy_seconds

LOOK_SECONDS = 0.25
"""Times are told in hundredths of a second: a shorter look would see little."""

_DISTURBING = 0.1
"""Share of the cores with which others change what is measured."""

_MOST_BUSY = 1 / 3
"""Share of the cores that others may use. One process of many cores that feeds a GPU stays below it."""


@dataclass(frozen=True)
class Clocks:
    """Times of this process's cores, in seconds.

    Attributes:
        now: By a clock.
        busy: For which the cores have computed, whoever it was for; None where that is not told.
        own: For which they have computed for this process.
        cores: How many there are.
    """

    now: float
    busy: float | None
    own: float
    cores: int


def read_clocks() -> Clocks:
    """The times now."""
    cores = affinity()
    return Clocks(time.perf_counter(), busy_seconds(cores), time.process_time(), len(cores))


class Disturbance:
    """Whether other processes used the cores since it was asked last.

    Args:
        read: Tells the times.
    """

    def __init__(self, read: Callable[[], Clocks] = read_clocks) -> None:
        self._read = read
        self._before: Clocks | None = None

    def __call__(self) -> bool:
        """Whether they did for a tenth of the time; False when asked for the first time, or where that is not told."""
        before, self._before = self._before, self._read()
        if before is None or before.busy is None or self._before.busy is None:
            return False
        return _others(before, self._before) > _DISTURBING


class SpareCores:
    """Looks at the cores every `LOOK_SECONDS`, while somebody wants to know.

    Args:
        read: Tells the times.
    """

    def __init__(self, read: Callable[[], Clocks] = read_clocks) -> None:
        self._read = read
        self._since: Clocks | None = None
        self.spare = False
        """What was seen last: whether others leave most of the cores idle. False where that is not told."""

    def forget(self) -> None:
        """Nobody wants to know for now: a look begins anew with the next `look`, and `spare` stays."""
        self._since = None

    def look(self) -> bool:
        """Look, where it is time.

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
    """Share of the cores' time that other processes used; infinite where it is not told."""
    if before.busy is None or after.busy is None:
        return math.inf
    seconds = after.cores * (after.now - before.now)
    return ((after.busy - before.busy) - (after.own - before.own)) / seconds if seconds > 0 else 0.0
