"""Retries with backoff, within the deadline."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import structlog

from gateway.errors import Tier, lost, out_of_time, untyped
from serving.errors import Code, Reason, ServiceError

log = structlog.get_logger()

T = TypeVar("T")


def settings_differ(error: ServiceError) -> bool:
    """Whether a vision service refused the call because the caller expected other settings."""
    return error.reason == Reason.ENCODER_SETTINGS_DIFFER.name


@dataclass(frozen=True)
class Backoff:
    """Exponential backoff between attempts.

    Attributes:
        first: Seconds before the second attempt, on average.
        factor: Growth of each further delay.
        longest: Longest delay, on average.
        jitter: Random share by which a delay is shorter or longer, so that many requests are not retried at once.
    """

    first: float = 0.1
    factor: float = 3.0
    longest: float = 1.0
    jitter: float = 0.5

    def seconds(self, attempt: int) -> float:
        """The delay after attempt number `attempt`, from 1 on."""
        mean = min(self.longest, self.first * self.factor ** (attempt - 1))
        return mean * random.uniform(1 - self.jitter, 1 + self.jitter)


class Deadline:
    """The deadline of a request.

    Args:
        seconds: From now.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._at = time.monotonic() + seconds

    def remaining(self) -> float:
        """Seconds left.

        Raises:
            ServiceError: DEADLINE_EXCEEDED if none are left.
        """
        if (left := self._at - time.monotonic()) <= 0:
            raise self.error()
        return left

    def error(self) -> ServiceError:
        """DEADLINE_EXCEEDED for this request."""
        return out_of_time(self._seconds)

    async def pause(self, seconds: float) -> None:
        """Wait, but not past the deadline.

        Raises:
            ServiceError: DEADLINE_EXCEEDED if it has passed.
        """
        await asyncio.sleep(min(seconds, self.remaining()))
        self.remaining()


async def retry_unavailable(
    call: Callable[[], Awaitable[T]], *, tier: Tier, attempts: int, backoff: Backoff, deadline: Deadline
) -> T:
    """Repeat a call while it fails with an error that is specific to a replica: UNAVAILABLE, or other encoder settings.

    Args:
        call: Makes one attempt; load balancing selects a healthy replica for each.
        tier: The tier that is called.
        attempts: Most attempts.
        backoff: The waits between attempts.
        deadline: The request's deadline.

    Raises:
        ServiceError: The last attempt's error; UNAVAILABLE in the form of `errors.lost`.
    """
    for attempt in itertools.count(1):
        try:
            return await call()
        except ServiceError as error:
            if error.code is Code.DEADLINE_EXCEEDED and untyped(error):
                raise deadline.error() from error
            differs = settings_differ(error)
            if error.code is not Code.UNAVAILABLE and not differs:
                raise
            log.warning("attempt failed", tier=tier.value, attempt=attempt, of=attempts, error=error.message)
            if attempt >= attempts:
                if differs:
                    raise
                raise lost(tier, error, attempts=attempts) from error
        await deadline.pause(backoff.seconds(attempt))
    raise AssertionError("unreachable")
