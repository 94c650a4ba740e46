"""Outlier ejection and its way back, on a clock of the test."""

from __future__ import annotations

from gateway.replicas.ejection import Ejection, EjectionPolicy


class Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def _ejection() -> tuple[Ejection, Clock]:
    clock = Clock()
    return Ejection(EjectionPolicy(failures=3, first=2, factor=2, longest=7), clock), clock


def test_failures_in_a_row_eject() -> None:
    """Three failures eject; a success in between begins the count anew."""
    ejection, clock = _ejection()
    ejection.failed()
    ejection.failed()
    ejection.succeeded()
    assert [ejection.failed() for _ in range(3)] == [False, False, True]
    assert ejection.ejected
    clock.now += 1.9
    assert ejection.ejected
    clock.now += 0.2
    assert not ejection.ejected
    assert ejection.probation


def test_a_success_on_probation_is_the_way_back() -> None:
    """After it three failures are needed again."""
    ejection, clock = _ejection()
    for _ in range(3):
        ejection.failed()
    clock.now += 3
    ejection.succeeded()
    assert not ejection.probation
    assert not ejection.failed()
    assert not ejection.ejected


def test_each_further_ejection_is_longer() -> None:
    """One failure on probation ejects for twice the time, up to the longest."""
    ejection, clock = _ejection()
    for _ in range(3):
        ejection.failed()
    for seconds in (2, 4, 7, 7):
        assert not ejection.failed()  # of a call that began before
        clock.now += seconds - 0.1
        assert ejection.ejected
        clock.now += 0.2
        assert not ejection.ejected
        assert ejection.failed()
