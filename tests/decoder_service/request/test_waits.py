"""Estimates of waiting times."""

from __future__ import annotations

import pytest

from decoder_service.request.waits import Waits


def known(slots: int, *seconds: float) -> Waits:
    """Waits that have learned durations."""
    waits = Waits(slots)
    for duration in seconds:
        waits.learn(duration)
    return waits


def test_nothing_is_known_before_a_request_has_ended() -> None:
    """No number is made up."""
    assert Waits(2).until_end([1.0]) is None
    assert Waits(2).until_start([1.0], 5) is None


@pytest.mark.parametrize(
    ("elapsed", "waiting", "expected"),
    [
        ([], 0, 0.0),  # a slot is free
        ([3.0], 0, 0.0),
        ([3.0, 7.0], 0, 3.0),  # the older one ends in 3 s
        ([3.0, 7.0], 1, 7.0),  # the one before starts in 3 s, the slot of the younger one is free in 7
        ([3.0, 7.0], 2, 13.0),
        ([30.0, 7.0], 0, 2.5),  # one that is overdue takes a quarter of the mean yet
        ([30.0, 3.0], 0, 2.5),
        ([1.0, 2.0, 9.0], 0, 8.0),  # more answers than slots: the last ones count
    ],
)
def test_the_start_of_one_more(elapsed: list[float], waiting: int, expected: float) -> None:
    """Two slots and requests of 10 seconds, first come first served."""
    assert known(2, 10.0).until_start(elapsed, waiting) == expected


def test_the_end_of_the_next() -> None:
    """The oldest ends first; without any, one that starts now takes the mean."""
    assert known(2, 10.0).until_end([3.0, 7.0]) == 3.0
    assert known(2, 10.0).until_end([]) == 10.0


def test_the_mean_follows_the_load() -> None:
    """After twenty requests of another length it is theirs, nearly."""
    assert known(1, 100.0, *[10.0] * 20).until_end([]) == pytest.approx(10.0, rel=0.15)
