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
    speeds = calibration.calibrate(runner, 4, 1000)  # type: ignore[arg-type]  # all of a runner that it uses
    assert {name: speed.decode.seconds for name, speed in speeds.items()} == {"int4": (1, 4, 4), "int8": (2.25, 3, 3)}
    assert speeds["int4"].prefill.sizes == calibration.CHUNKS
    assert speeds["int4"].prefill.seconds == calibration.CHUNKS
    assert speeds["int8"].prefill.seconds == tuple(2 + size / 4 for size in calibration.CHUNKS)
