"""What disturbs a machine for a while does not stay in its measurements."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from decoder_service.engine.batching import calibration
from decoder_service.engine.model import Piece, Shape, Step


class Clocked:
    """Graphs whose runs take what they are said to take, on a clock of their own; in one round, ten times as long."""

    graphs = ("int4", "int8")
    shape = Shape(vocabulary=1, feature_width=4, axes=3)

    def __init__(self, disturbed: range) -> None:
        self.now = 0.0
        self._disturbed = disturbed
        self._runs = 0

    def run(self, graph: str, *, step: Step | None = None, piece: Piece | None = None) -> NDArray[np.float32]:
        """A second for each token of INT4, and for INT8 a quarter of it behind two seconds; steps of two dawdle."""
        size = step.lengths.size if step is not None else piece.token_ids.size if piece is not None else 0
        seconds = size if graph == "int4" else 2 + size / 4
        if step is not None and size == 2:
            seconds += 100
        self.now += seconds * (10 if self._runs in self._disturbed else 1)
        self._runs += 1
        return np.zeros((1, 1), np.float32)


@pytest.mark.parametrize("disturbed", [range(0), range(4, 18), range(18, 32), range(32, 60)])
def test_a_round_that_is_disturbed_does_not_count(disturbed: range, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each graph's curves are what an undisturbed machine gives, and less never takes longer than more."""
    runner = Clocked(disturbed)
    monkeypatch.setattr(calibration.time, "perf_counter", lambda: runner.now)
    speeds, kept = calibration.calibrate(runner, 4, 1000)  # type: ignore[arg-type]  # all of a runner that it uses
    assert kept
    assert {name: speed.decode.seconds for name, speed in speeds.items()} == {"int4": (1, 4, 4), "int8": (2.25, 3, 3)}
    assert speeds["int4"].prefill.sizes == calibration.CHUNKS
    assert speeds["int4"].prefill.seconds == calibration.CHUNKS
    assert speeds["int8"].prefill.seconds == tuple(2 + size / 4 for size in calibration.CHUNKS)


def test_disturbed_rounds_are_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until there are enough quiet ones; where none comes within seconds, the speeds hold for this start alone."""
    first_five = Clocked(range(4, 4 + 5 * 14))  # after two runs of each graph to warm up, 14 runs a round
    monkeypatch.setattr(calibration.time, "perf_counter", lambda: first_five.now / 1e4)
    answers = iter([False, *[True] * 5, *[False] * 4])
    speeds, kept = calibration.calibrate(first_five, 4, 1000, lambda: next(answers))  # type: ignore[arg-type]
    assert kept
    assert next(answers, None) is None
    assert speeds["int4"].decode.seconds == pytest.approx((1e-4, 4e-4, 4e-4))

    always = Clocked(range(4, 10**6))
    monkeypatch.setattr(calibration.time, "perf_counter", lambda: always.now)
    speeds, kept = calibration.calibrate(always, 4, 1000, lambda: True)  # type: ignore[arg-type]
    assert not kept
    assert set(speeds) == {"int4", "int8"}
