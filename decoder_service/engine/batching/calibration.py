"""Measures the speed of the graphs on this machine with a few steps and chunks of each, and warms up."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from decoder_service.engine.batching.pace import Curve, Speed
from decoder_service.engine.model import Piece, Step
from decoder_service.engine.onnx.runner import Runner

# Between and beyond these sizes, the curves are linear.
CHUNKS = (2, 8, 32, 128)
_CONTEXT = 32
_ROUNDS = 4
_EXTRA_SECONDS = 5.0  # for more rounds, if other processes used the cores in some
_FEWEST_QUIET = 2  # undisturbed rounds, so that the measurements can be stored


def widths(slots: int) -> tuple[int, ...]:
    """The widths of steps to measure: powers of two, and all slots."""
    powers = [1 << n for n in range(slots.bit_length()) if 1 << n < slots]
    return (*powers, slots)


def calibrate(
    runner: Runner, slots: int, room: int, disturbed: Callable[[], bool] = lambda: False
) -> tuple[dict[str, Speed], bool]:
    """Time every graph. Overwrites the KV cache.

    Each round times all graphs, so a temporary disturbance affects all graphs alike, and only that round. When the
    whole system starts, the encoder warms up at the same time, so disturbed rounds are repeated, within limits.

    Args:
        runner: The graphs.
        slots: Most requests in one step.
        room: Tokens that a slot of the KV cache holds.
        disturbed: Called after each round; returns whether other processes used the cores in it.

    Returns:
        The speeds, and whether enough rounds were undisturbed to store them.
    """
    steps, chunks = widths(slots), [size for size in CHUNKS if size <= room]
    timings = [_Timing(runner, graph, steps, chunks) for graph in runner.graphs]
    for timing in timings:
        timing.warm_up()
    rounds = quiet = 0
    last = math.inf
    disturbed()  # starts the first measurement
    while rounds < _ROUNDS or (quiet < _ROUNDS and time.perf_counter() < last):
        for timing in timings:
            timing.go_round()
        rounds += 1
        quiet += not disturbed()
        if rounds == _ROUNDS:
            last = time.perf_counter() + _EXTRA_SECONDS
    return {timing.graph: timing.speed() for timing in timings}, quiet >= _FEWEST_QUIET


class _Timing:
    """Shortest times of a graph's runs so far."""

    def __init__(self, runner: Runner, graph: str, steps: Sequence[int], chunks: Sequence[int]) -> None:
        self._runner = runner
        self.graph = graph
        self._context = min(_CONTEXT, chunks[-1] - 1)
        self._steps = dict.fromkeys(steps, math.inf)
        self._chunks = dict.fromkeys(chunks, math.inf)

    def warm_up(self) -> None:
        """Run every size once: the first runs allocate memory."""
        self._step(next(iter(self._steps)))
        self._chunk(next(iter(self._chunks)))

    def go_round(self) -> None:
        """Time each width and each length once."""
        for best, run in ((self._steps, self._step), (self._chunks, self._chunk)):
            for size, seconds in best.items():
                best[size] = min(seconds, _timed(run, size))

    def speed(self) -> Speed:
        """The best of the rounds, since a disturbance only makes a run longer."""
        return Speed(_curve(self._steps), _curve(self._chunks))

    def _step(self, width: int) -> None:
        lengths = np.full(width, self._context, np.int64)
        self._runner.run(self.graph, step=Step(0, lengths, np.zeros(width, np.int32), lengths))

    def _chunk(self, size: int) -> None:
        prefill(self._runner, self.graph, size)


def prefill(runner: Runner, graph: str, size: int) -> None:
    """Prefill a chunk of `size` tokens in the first slot. The first large chunk allocates memory for later ones."""
    positions = np.broadcast_to(np.arange(size), (runner.shape.axes, size))
    features = np.empty((0, runner.shape.feature_width), np.float32)
    runner.run(graph, piece=Piece(0, 0, np.zeros(size, np.int32), features, positions))


def _curve(best: Mapping[int, float]) -> Curve:
    """A curve that does not fall: where a smaller size took longer, it was disturbed."""
    seconds = np.minimum.accumulate([*best.values()][::-1])[::-1]
    return Curve(tuple(best), tuple(seconds.tolist()))


def _timed(run: Callable[[int], None], size: int) -> float:
    started = time.perf_counter()
    run(size)
    return time.perf_counter() - started
