"""Retries: on another replica, with backoff, within a budget and the deadline."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import structlog

from gateway import metrics
from gateway.errors import Tier, lost, out_of_time
from gateway.ports import Route
from serving.errors import Code, Reason, ServiceError
from serving.status import untyped

log = structlog.get_logger()

T = TypeVar("T")


def settings_differ(error: ServiceError) -> bool:
    """Whether a vision service refused the call because the caller expected other settings."""
    return error.reason == Reason.ENCODER_SETTINGS_DIFFER.name


@dataclass(frozen=True)
class Backoff:
    """Exponential backoff between attempts.

    Attributes:
        first: Seconds after the first failure, on average.
        factor: Growth of each further delay.
        longest: Longest delay in seconds, on average.
        jitter: Random share by which a delay is shorter or longer, so that many requests are not retried at once.
    """

    first: float = 0.1
    factor: float = 3.0
    longest: float = 1.0
    jitter: float = 0.5

    def seconds(self, attempt: int) -> float:
        """The delay before the next attempt, in seconds.

        Args:
            attempt: How many have failed, from 1 on, without those that another replica took over at once.
        """
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


_DEFECTS = frozenset({Reason.FEATURES_NOT_FINITE.name, Reason.LOGITS_NOT_FINITE.name})
"""Reasons that may be a defect of one replica: another one is tried, but not the same one again."""


def refused(error: ServiceError) -> bool:
    """Whether one replica has no room, or is not ready."""
    return error.reason in Reason.__members__ and Reason[error.reason].value.elsewhere


def retriable(error: ServiceError) -> bool:
    """Whether another replica, or the same one later, may answer."""
    return error.code is Code.UNAVAILABLE or refused(error) or settings_differ(error) or error.reason in _DEFECTS


class RetryBudget:
    """Bounds the retries at a tier, so that they do not add to the load that makes calls fail: a token bucket.

    It is filled by time and by requests. A full one has the retries of ten seconds, so that all calls of a replica that
    dies can be repeated elsewhere.

    Args:
        share: Retries for each request.
        per_second: Retries for each second.
        clock: Seconds, rising.
    """

    def __init__(
        self, share: float = 0.2, per_second: float = 10.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._share = share
        self._per_second = per_second
        self._clock = clock
        self._most = 10 * per_second
        self._left = self._most
        self._filled = clock()

    def request(self) -> None:
        """Count a request."""
        self._left = min(self._most, self._left + self._share)

    def take(self) -> bool:
        """Take one retry, if there is one."""
        now = self._clock()
        self._left = min(self._most, self._left + self._per_second * (now - self._filled))
        self._filled = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Retries:
    """The retries of all requests to one tier.

    Args:
        tier: The tier.
        attempts: Most attempts of one piece of work while the tier is unavailable.
        backoff: The waits in between.
        budget: Bounds the retries of all requests together.
    """

    def __init__(self, tier: Tier, *, attempts: int, backoff: Backoff, budget: RetryBudget | None = None) -> None:
        self.tier = tier
        self.attempts = attempts
        self.backoff = backoff
        self.budget = budget or RetryBudget()

    def begin(self, route: Route, deadline: Deadline) -> Attempts:
        """The attempts of one piece of work.

        Args:
            route: Where they go.
            deadline: The request's deadline.
        """
        self.budget.request()
        return Attempts(self, route, deadline)

    async def run(self, call: Callable[[Route], Awaitable[T]], deadline: Deadline, route: Route | None = None) -> T:
        """Repeat a call while `retriable` errors allow it.

        Args:
            call: Makes one attempt.
            deadline: The request's deadline.
            route: Where the attempts go; None: to any replica.

        Raises:
            ServiceError: As `Attempts.failed`.
        """
        attempts = self.begin(route or Route(), deadline)
        while True:
            try:
                return await call(attempts.route)
            except ServiceError as error:
                await attempts.failed(error)


class Attempts:
    """The attempts of one piece of work. Made by `Retries.begin`."""

    def __init__(self, retries: Retries, route: Route, deadline: Deadline) -> None:
        self._retries = retries
        self._deadline = deadline
        self._made = 0
        self._delays: list[float] = []
        self.route = route
        """Where the next attempt goes."""

    async def failed(self, error: ServiceError) -> None:
        """Return when the next attempt may start.

        A replica that refuses a call is followed by another at once. Every other attempt after the first takes a retry
        from the budget and comes after a pause.

        Args:
            error: The failure of the last attempt.

        Raises:
            ServiceError: There is no further attempt. UNAVAILABLE is in the form of `errors.lost`; RESOURCE_EXHAUSTED
                has the shortest delay that any replica stated.
        """
        if error.code is Code.DEADLINE_EXCEEDED and untyped(error):
            raise self._deadline.error() from error
        if not retriable(error):
            raise error
        if refused(error):
            if error.retry_after is not None:
                self._delays.append(error.retry_after)
            if self.route.alternatives:
                self._count("moved", error)
                return
            if error.code is Code.RESOURCE_EXHAUSTED:
                self._count("given_up", error)
                error.retry_after = min(self._delays, default=error.retry_after)
                raise error
        self._made += 1
        useless = error.reason in _DEFECTS and not self.route.alternatives
        if useless or self._made >= self._retries.attempts or not self._retries.budget.take():
            self._count("given_up", error)
            if error.code is Code.UNAVAILABLE:
                raise lost(self._retries.tier, error, attempts=self._made) from error
            raise error
        self._count("repeated", error)
        await self._deadline.pause(self._retries.backoff.seconds(self._made))

    def _count(self, outcome: str, error: ServiceError) -> None:
        tier = self._retries.tier.value
        metrics.RETRIES.labels(tier, outcome).inc()
        log.warning("attempt failed", tier=tier, outcome=outcome, failed=self._made, error=error.message)
