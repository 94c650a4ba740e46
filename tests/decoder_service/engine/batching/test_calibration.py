"""What disturbs a machine for a while does not stay in its measurements."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from decoder_service.engine.batching import calibration
from decoder_service.engine.model import Piece, Shape, Step


class Clocked:
    """A model whose runs take what they are said to take, on a clock of its own; in one round, ten times as long."""

    together, parts = False, 2

    def __init__(self, disturbed: range) -> None:
        self.now = 0.0
        self._disturbed = disturbed
        self._runs = 0

    def _take(self, seconds: float) -> None:
        self.now += seconds * (10 if self._runs in self._disturbed else 1)
        self._runs += 1

    def decode(self, step: Step, piece: Piece | None = None) -> NDArray[np.float32]:
        """A second for each token; steps of two dawdle."""
        self._take(step.lengths.size + 100 * (step.lengths.size == 2))
        return np.zeros((1, 1), np.float32)

    def prefill(self, piece: Piece, *, ends: bool = True) -> Iterator[NDArray[np.float32] | None]:
        """A quarter of a second for each token, and two; the second part takes all of it."""
        yield None
        self._take(2 + piece.token_ids.size / 4)
        yield np.zeros((1, 1), np.float32)


SHAPE = Shape(vocabulary=1, feature_width=4, axes=3)
WARM_UP, ROUND = 2, 7  # runs


@pytest.mark.parametrize("disturbed", [range(0), range(2, 9), range(9, 16), range(16, 30)])
def test_a_round_that_is_disturbed_does_not_count(disturbed: range, monkeypatch: pytest.MonkeyPatch) -> None:
    """The curves are what an undisturbed machine gives, and less never takes longer than more."""
    model = Clocked(disturbed)
    monkeypatch.setattr(calibration.time, "perf_counter", lambda: model.now)
    speed, kept = calibration.calibrate(model, SHAPE, 4, 1000)
    assert kept
    assert speed.decode.seconds == (1, 4, 4)
    assert speed.prefill.sizes == calibration.CHUNKS
    assert speed.prefill.seconds == tuple(2 + size / 4 for size in calibration.CHUNKS)


def test_disturbed_rounds_are_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until there are enough quiet ones; where none comes within seconds, the speed holds for this start alone."""
    first_five = Clocked(range(WARM_UP, WARM_UP + 5 * ROUND))
    monkeypatch.setattr(calibration.time, "perf_counter", lambda: first_five.now / 1e4)
    answers = iter([False, *[True] * 5, *[False] * 4])
    speed, kept = calibration.calibrate(first_five, SHAPE, 4, 1000, lambda: next(answers))
    assert kept
    assert next(answers, None) is None
    assert speed.decode.seconds == pytest.approx((1e-4, 4e-4, 4e-4))

    always = Clocked(range(WARM_UP, 10**6))
    monkeypatch.setattr(calibration.time, "perf_counter", lambda: always.now)
    _, kept = calibration.calibrate(always, SHAPE, 4, 1000, lambda: True)
    assert not kept
