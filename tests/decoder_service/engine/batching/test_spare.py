"""Whether cores are idle: what others use decides, and not what this process does."""

from __future__ import annotations

import pytest

from decoder_service.engine.batching.spare import LOOK_SECONDS, Clocks, Disturbance, SpareCores, read_clocks


class Told:
    """Clocks in the test's hands: of four cores."""

    def __init__(self) -> None:
        self.now = Clocks(100.0, 50.0, 10.0, 4)

    def pass_time(self, seconds: float, *, others: float, own: float = 0.0) -> None:
        """Let so much time pass, with so many cores busy for others and for this process."""
        now = self.now
        busy = None if now.busy is None else now.busy + (others + own) * seconds
        self.now = Clocks(now.now + seconds, busy, now.own + own * seconds, now.cores)

    def __call__(self) -> Clocks:
        return self.now


@pytest.mark.parametrize(
    ("others", "own", "expected"),
    [(0.0, 0.0, True), (0.2, 3.8, True), (1.0, 0.0, True), (2.0, 2.0, False), (4, 0, False)],
)
def test_others_decide(others: float, own: float, expected: bool) -> None:
    """One busy core of four is no reason to wait, two are; the own ones do not count."""
    told = Told()
    cores = SpareCores(told)
    assert not cores.look()
    told.pass_time(LOOK_SECONDS, others=others, own=own)
    assert cores.look() is expected


def test_a_look_takes_its_time() -> None:
    """Until it has, the last one counts; after a pause the next begins anew, whatever was in the pause."""
    told = Told()
    cores = SpareCores(told)
    cores.look()
    told.pass_time(LOOK_SECONDS / 2, others=0)
    assert not cores.look()
    told.pass_time(LOOK_SECONDS / 2, others=0)
    assert cores.look()
    cores.forget()
    told.pass_time(100, others=4)
    assert cores.look()
    told.pass_time(LOOK_SECONDS, others=4)
    assert not cores.look()


def test_where_nothing_is_told_cores_are_not_spare() -> None:
    """A system without the numbers."""
    told = Told()
    told.now = Clocks(100.0, None, 10.0, 4)
    cores = SpareCores(told)
    cores.look()
    told.pass_time(LOOK_SECONDS, others=0)
    assert not cores.look()


def test_real_clocks_go_forward() -> None:
    """What this process computes is in all three."""
    before = read_clocks()
    while (after := read_clocks()).own < before.own + 0.05:
        sum(range(100_000))
    assert after.now > before.now
    assert after.cores == before.cores
    if before.busy is not None and after.busy is not None:
        assert after.busy > before.busy


@pytest.mark.parametrize(("others", "expected"), [(0.0, False), (0.3, False), (0.8, True), (4.0, True)])
def test_a_disturbance_is_a_tenth_of_the_cores(others: float, expected: bool) -> None:
    """For others, since it was asked last; the first time, and where times are not told, there is none."""
    told = Told()
    disturbance = Disturbance(told)
    assert not disturbance()
    told.pass_time(1.0, others=others, own=3.0)
    assert disturbance() is expected
    told.pass_time(1.0, others=0.0, own=3.0)
    assert not disturbance()
    told.now = Clocks(told.now.now, None, 0.0, 4)
    disturbance()
    told.pass_time(1.0, others=4.0)
    assert not disturbance()
