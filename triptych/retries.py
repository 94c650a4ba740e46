"""When a call is tried again."""

from __future__ import annotations

import random
import time

from serving.errors import Code
from triptych.errors import GATEWAY_UNAVAILABLE, TriptychError

_FIRST_DELAY = 0.5
_JITTER = 0.25


class Attempts:
    """The attempts of one call, all within its deadline.

    Args:
        retries: Most attempts after the first.
        timeout: Seconds for all attempts together; None is no bound.
        gateways: Number of gateways. Each attempt may call one after the other until one answers.
    """

    def __init__(self, retries: int, timeout: float | None, gateways: int = 1) -> None:
        self._left = retries
        self._gateways = gateways
        self._called = 0
        self._delayed = 0
        self._deadline = None if timeout is None else time.monotonic() + timeout

    def remaining(self) -> float | None:
        """Seconds that are left; None if there is no bound."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def delay(self, error: TriptychError) -> float | None:
        """Seconds until the next attempt; None if there is none.

        0 while there is a gateway that was not called. Otherwise they double with each attempt, from the server's delay
        or half a second, and vary by a quarter, so that many clients do not come back at once.

        Args:
            error: The error of the last attempt.
        """
        if error.code is not Code.UNAVAILABLE:
            return None
        self._called += 1
        if error.reason == GATEWAY_UNAVAILABLE and self._called < self._gateways:
            return None if self.remaining() == 0 else 0.0
        if self._left <= 0:
            return None
        first = _FIRST_DELAY if error.retry_after is None else error.retry_after
        seconds = first * (1 << self._delayed) * random.uniform(1, 1 + _JITTER)
        remaining = self.remaining()
        if remaining is not None and seconds >= remaining:
            return None
        self._left -= 1
        self._delayed += 1
        self._called = 0
        return seconds
