"""Outlier ejection: leaves a replica whose calls fail although its health is good, and gives it a way back."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class EjectionPolicy:
    """When a replica is ejected, and for how long.

    Attributes:
        failures: Failures without a success in between that eject it.
        first: Seconds of the first ejection.
        factor: Growth of each further one without a success in between.
        longest: Most seconds.
    """

    failures: int = 3
    first: float = 2.0
    factor: float = 2.0
    longest: float = 60.0


class Ejection:
    """The failures of one replica.

    After an ejection the replica is on probation: one call at a time. Its success ends the probation, its failure
    ejects the replica again, for longer.

    Args:
        policy: The limits.
        clock: Seconds, rising.
    """

    def __init__(self, policy: EjectionPolicy, clock: Callable[[], float] = time.monotonic) -> None:
        self._policy = policy
        self._clock = clock
        self._failures = 0
        self._ejections = 0
        self._until = 0.0

    @property
    def ejected(self) -> bool:
        """Whether it gets no calls now."""
        return self._clock() < self._until

    @property
    def probation(self) -> bool:
        """Whether it was ejected and has not succeeded since."""
        return self._ejections > 0

    def succeeded(self) -> None:
        """Record a call that the replica answered."""
        self._failures = self._ejections = 0

    def failed(self) -> bool:
        """Record a call that failed because of the replica. Returns whether this ejects it."""
        if self.ejected:  # calls that began before the ejection
            return False
        self._failures += 1
        if not self.probation and self._failures < self._policy.failures:
            return False
        seconds = self._policy.first * self._policy.factor**self._ejections
        self._until = self._clock() + min(seconds, self._policy.longest)
        self._ejections += 1
        return True
