"""How fast the graphs are on this machine: a few steps and chunks of each, timed. And a first chunk, to warm up."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from decoder_service.engine.model import Piece, Step
from decoder_service.engine.pace import Curve, Speed
from decoder_service.engine.runner import Runner

# Between and beyond these, lines are drawn.
CHUNKS = (2, 8, 32, 128)
_CONTEXT = 32
_REPEATS = 3


def widths(slots: int) -> tuple[int, ...]:
    """The widths of steps to measure: powers of two, and all slots."""
    powers = [1 << n for n in range(slots.bit_length()) if 1 << n < slots]
    return (*powers, slots)


def calibrate(runner: Runner, slots: int, room: int) -> dict[str, Speed]:
    """Time every graph. Writes over the cache of keys and values.

    Args:
        runner: The graphs.
        slots: Most requests in one step.
        room: Tokens that a row holds.
    """
    return {graph: _speed(runner, graph, widths(slots), [n for n in CHUNKS if n <= room]) for graph in runner.graphs}


def _speed(runner: Runner, graph: str, steps: Sequence[int], chunks: Sequence[int]) -> Speed:
    def step(width: int) -> None:
        lengths = np.full(width, min(_CONTEXT, chunks[-1] - 1), np.int64)
        runner.run(graph, step=Step(0, lengths, np.zeros(width, np.int32), lengths))

    return Speed(_curve(step, steps), _curve(lambda size: read(runner, graph, size), chunks))


def read(runner: Runner, graph: str, size: int) -> None:
    """Read a chunk of so many tokens into the first row. The first large one of all allocates what later ones use."""
    positions = np.broadcast_to(np.arange(size), (3, size))
    features = np.empty((0, runner.feature_width), np.float32)
    runner.run(graph, piece=Piece(0, 0, np.zeros(size, np.int32), features, positions))


def _curve(run: Callable[[int], None], sizes: Sequence[int]) -> Curve:
    """The best of a few runs each: what disturbs a run only makes it longer. More of something never takes less."""
    run(sizes[0])  # the first run of all allocates
    seconds = [min(_timed(run, size) for _ in range(_REPEATS)) for size in sizes]
    return Curve(tuple(sizes), tuple(np.maximum.accumulate(seconds).tolist()))


def _timed(run: Callable[[int], None], size: int) -> float:
    started = time.perf_counter()
    run(size)
    return time.perf_counter() - started
