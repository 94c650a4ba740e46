"""Which failures lead to another attempt, at once or later, and how many all requests may make."""

from __future__ import annotations

import pytest

from gateway.errors import Tier
from gateway.ports import Route
from gateway.retry import Attempts, Backoff, Deadline, Retries, RetryBudget
from serving.errors import Code, Reason, ServiceError, failure, invalid, overloaded, unavailable


class Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


def _attempts(*, alternatives: bool = False, attempts: int = 3, budget: RetryBudget | None = None) -> Attempts:
    retries = Retries(Tier.DECODER, attempts=attempts, backoff=Backoff(first=0.0), budget=budget)
    return retries.begin(Route(alternatives=alternatives), Deadline(30))


def _full(seconds: float) -> ServiceError:
    return overloaded(Reason.QUEUE_FULL, "the queue is full", retry_after=seconds)


LOST = unavailable(Reason.ENGINE_LOST, "the engine failed")


def test_a_budget_is_filled_by_requests_and_by_time() -> None:
    """A full one has the retries of ten seconds; then each second and each request add their share, up to that."""
    clock = Clock()
    budget = RetryBudget(0.2, 3.0, clock)
    assert [budget.take() for _ in range(31)] == [True] * 30 + [False]
    for _ in range(5):
        budget.request()
    assert [budget.take() for _ in range(2)] == [True, False]
    clock.now += 1
    assert [budget.take() for _ in range(4)] == [True] * 3 + [False]
    clock.now += 3600
    assert [budget.take() for _ in range(31)] == [True] * 30 + [False]


async def test_attempts_of_an_unavailable_tier_end() -> None:
    """After the last attempt the client gets UNAVAILABLE of the tier, with the cause."""
    attempts = _attempts(attempts=3)
    await attempts.failed(LOST)
    await attempts.failed(LOST)
    with pytest.raises(ServiceError, match="not available after 3 attempts: the engine failed") as caught:
        await attempts.failed(LOST)
    assert caught.value.reason == Reason.DECODER_UNAVAILABLE.name


async def test_a_used_up_budget_ends_attempts() -> None:
    """The first failure is final when all requests together have made their retries."""
    budget = RetryBudget(0.0, 0.1, Clock())
    await _attempts(budget=budget).failed(LOST)
    with pytest.raises(ServiceError, match="not available: the engine failed"):
        await _attempts(budget=budget).failed(LOST)


async def test_refusals_are_followed_by_other_replicas_at_once() -> None:
    """Without a retry of the budget, as long as there are others; then the shortest delay is told."""
    attempts = _attempts(alternatives=True, attempts=1, budget=RetryBudget(0.0, 0.01, Clock()))
    for seconds in (5.0, 2.0, 9.0):
        await attempts.failed(_full(seconds))
    attempts.route.alternatives = False
    with pytest.raises(ServiceError) as caught:
        await attempts.failed(_full(4.0))
    assert (caught.value.reason, caught.value.retry_after) == ("QUEUE_FULL", 2.0)


async def test_a_defect_is_tried_elsewhere_and_not_again() -> None:
    """Features that are not finite may come from one replica's memory or processor."""
    defect = failure(Reason.FEATURES_NOT_FINITE, "the features contain NaN")
    attempts = _attempts(alternatives=True)
    await attempts.failed(defect)
    attempts.route.alternatives = False
    with pytest.raises(ServiceError) as caught:
        await attempts.failed(defect)
    assert caught.value is defect


async def test_an_engine_that_is_not_ready_is_tried_again() -> None:
    """At another replica at once; if there is none, later, as any unavailable one."""
    not_ready = unavailable(Reason.ENGINE_NOT_READY, "the engine is being started again")
    attempts = _attempts(alternatives=True, attempts=2)
    await attempts.failed(not_ready)
    attempts.route.alternatives = False
    await attempts.failed(not_ready)
    with pytest.raises(ServiceError, match="after 2 attempts"):
        await attempts.failed(not_ready)


@pytest.mark.parametrize("alternatives", [True, False])
async def test_other_errors_are_final(alternatives: bool) -> None:
    """Another replica would say the same; and the client's own deadline is told as such."""
    wrong = invalid("messages", "is empty")
    with pytest.raises(ServiceError) as caught:
        await _attempts(alternatives=alternatives).failed(wrong)
    assert caught.value is wrong
    late = ServiceError(Code.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", "Deadline Exceeded")
    with pytest.raises(ServiceError, match="within its 30 seconds"):
        await _attempts(alternatives=alternatives).failed(late)
