"""Which graph computes what: bound to the phase, and to nothing that other requests could change.

Two graphs differ in more than rounding. So if the width of a run decided, what else is running would show in answers.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from decoder_service.engine.model import Piece, Step
from decoder_service.engine.onnx.runner import Runner

LAYERS_AT_ONCE = 2
"""Layers in a part of the graph that reads prompts: a part is to be short beside a step of answers."""


class Phases:
    """A runner's graphs as a model; see `Model`.

    Args:
        runner: The graphs.
        decode: The one that computes answers.
        prefill: The one that reads prompts; it may be the same.
    """

    def __init__(self, runner: Runner, *, decode: str, prefill: str) -> None:
        self._runner = runner
        self._decode = decode
        self._prefill = prefill
        self.together = decode == prefill
        self.parts = runner.parts(prefill)
        self.shape = runner.shape

    def decode(self, step: Step, piece: Piece | None = None) -> NDArray[np.float32]:
        """A token of each answer, and a chunk beside them where one graph does both."""
        return self._runner.run(self._decode, step=step, piece=piece)

    def prefill(self, piece: Piece, *, ends: bool = True) -> Iterator[NDArray[np.float32] | None]:
        """A chunk, part by part."""
        return self._runner.run_by_parts(self._prefill, piece=piece, head=ends)
