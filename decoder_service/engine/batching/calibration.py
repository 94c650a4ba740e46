"""Measures the speed of the graphs on this machine with a few steps and chunks, and warms up."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from decoder_service.engine.batching.pace import Curve, Speed
from decoder_service.engine.model import Model, Piece, Shape, Step

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
    model: Model, shape: Shape, slots: int, room: int, disturbed: Callable[[], bool] = lambda: False
) -> tuple[Speed, bool]:
    """Time decode steps and prefill chunks. Overwrites the KV cache.

    Each round times all sizes, so a temporary disturbance affects all alike, and only that round. When the whole system
    starts, the encoder warms up at the same time, so disturbed rounds are repeated, within limits.

    Args:
        model: Runs the graphs.
        shape: Shape of the model.
        slots: Most requests in one step.
        room: Tokens that a slot of the KV cache holds.
        disturbed: Called after each round; returns whether other processes used the cores in it.

    Returns:
        The speed, and whether enough rounds were undisturbed to store it.
    """
    timing = _Timing(model, shape, widths(slots), [size for size in CHUNKS if size <= room])
    timing.warm_up()
    rounds = quiet = 0
    last = math.inf
    disturbed()  # starts the first measurement
    while rounds < _ROUNDS or (quiet < _ROUNDS and time.perf_counter() < last):
        timing.go_round()
        rounds += 1
        quiet += not disturbed()
        if rounds == _ROUNDS:
            last = time.perf_counter() + _EXTRA_SECONDS
    return timing.speed(), quiet >= _FEWEST_QUIET


class _Timing:
    """Shortest times of runs so far."""

    def __init__(self, model: Model, shape: Shape, steps: Sequence[int], chunks: Sequence[int]) -> None:
        self._model = model
        self._shape = shape
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
        self._model.decode(Step(0, lengths, np.zeros(width, np.int32), lengths))

    def _chunk(self, size: int) -> None:
        prefill(self._model, self._shape, size)


def prefill(model: Model, shape: Shape, size: int) -> NDArray[np.float32] | None:
    """Prefill a chunk of `size` tokens in the first slot. The first large chunk allocates memory for later ones.

    Returns:
        The logits after it, float32 [1, vocab].
    """
    positions = np.broadcast_to(np.arange(size), (shape.axes, size))
    features = np.empty((0, shape.feature_width), np.float32)
    *_, logits = model.prefill(Piece(0, 0, np.zeros(size, np.int32), features, positions))
    return logits


def check_logits(model: Model, shape: Shape, size: int) -> None:
    """Prefill `size` tokens and decode one, as `prefill` does, and check the logits of both.

    Raises:
        ValueError: They are not finite, or all are equal.
    """
    after = np.array([size], np.int64)
    step = Step(0, after, np.zeros(1, np.int32), after)
    for phase, logits in (("prefill", prefill(model, shape, size)), ("decode", model.decode(step))):
        if logits is None or not np.isfinite(logits).all():
            raise ValueError(f"the logits of its {phase} graph are not finite: export the bundle again")
        if logits.min() == logits.max():
            raise ValueError(f"the logits of its {phase} graph are all equal: export the bundle again")


def _curve(best: Mapping[int, float]) -> Curve:
    """A curve that does not fall: where a smaller size took longer, it was disturbed."""
    seconds = np.minimum.accumulate([*best.values()][::-1])[::-1]
    return Curve(tuple(best), tuple(seconds.tolist()))


def _timed(run: Callable[[int], None], size: int) -> float:
    started = time.perf_counter()
    run(size)
    return time.perf_counter() - started
