"""Metrics as the benchmarks define them, and the interval of a mean."""

from __future__ import annotations

import pytest

from evaluation.metrics import anls, best, exact, interval, relaxed


@pytest.mark.parametrize(("answer", "right", "same"), [("Red.", "red", 1), (" a  b", "A b", 1), ("red", "reds", 0)])
def test_exact(answer: str, right: str, same: int) -> None:
    """Case, spaces and a full stop make no difference; anything else does."""
    assert exact(answer, right) == same


def test_anls() -> None:
    """One minus the edit distance over the longer length; nothing from half on."""
    assert anls("Hello World", "hello world") == 1
    assert anls("hello wrld", "hello world") == pytest.approx(10 / 11)
    assert anls("abcd", "abxy") == 0  # half of it differs
    assert anls("abcde", "abcxy") == pytest.approx(0.6)
    assert anls("", "abc") == 0


@pytest.mark.parametrize(
    ("answer", "right", "score"),
    [
        *(("105", "100", 1), ("95", "100", 1), ("105.1", "100", 0), ("-100", "100", 0)),
        *(("5%", "0.05", 1), ("5", "5%", 0), ("1,000", "1000", 1), ("$5.", "5", 1), ("1e3", "1000", 1)),
        *(("0", "0", 1), ("0.1", "0", 0)),
        *(("Yes", "yes", 1), ("no", "yes", 0), ("12 apples", "12", 0), (".", ".5", 0), (".5", "0.5", 1)),
    ],
)
def test_relaxed(answer: str, right: str, score: int) -> None:
    """Numbers within a twentieth of the right one; everything else as it stands."""
    assert relaxed(answer, right) == score


def test_the_best_of_several_right_answers_counts() -> None:
    """As in every of these benchmarks."""
    assert best("exact", "b", ["a", "B"]) == 1
    assert best("relaxed", "c", ["a", "b"]) == 0


@pytest.mark.parametrize(
    ("mean", "count", "expected"),
    [(0.5, 100, (0.4038, 0.5962)), (1.0, 10, (0.7225, 1.0)), (0.0, 10, (0.0, 0.2775)), (0.81, 263, (0.7583, 0.8528))],
)
def test_the_interval_is_wilsons(mean: float, count: int, expected: tuple[float, float]) -> None:
    """It is drawn towards a half, and stays within 0 and 1."""
    assert interval(mean, count) == pytest.approx(expected, abs=2e-4)
