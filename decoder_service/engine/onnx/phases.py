"""Selects the graph by the phase alone, so that no result depends on the other requests.

Graphs of different precision give different logits. If the width of a step selected the graph, answers would depend on
the load.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from decoder_service.engine.model import Piece, Step
from decoder_service.engine.onnx.runner import Runner

LAYERS_AT_ONCE = 2
"""Layers in a part of the graph for prefill: a part must be short in comparison with a decode step."""


class Phases:
    """The model that the scheduler uses; see `Model`.

    Args:
        runner: Runs the graphs.
        decode: Name of the graph for decode.
        prefill: Name of the graph for prefill; it can be the same.
    """

    def __init__(self, runner: Runner, *, decode: str, prefill: str) -> None:
        self._runner = runner
        self._decode = decode
        self._prefill = prefill
        self.together = decode == prefill
        self.parts = runner.parts(prefill)
        self.shape = runner.shape

    def decode(self, step: Step | None, piece: Piece | None = None) -> NDArray[np.float32]:
        """Run a decode step, known tokens of an answer, or both; a chunk of a prompt only if `together`."""
        return self._runner.run(self._decode, step=step, piece=piece)

    def prefill(self, piece: Piece, *, ends: bool = True) -> Iterator[NDArray[np.float32] | None]:
        """Prefill a chunk part by part."""
        return self._runner.run_by_parts(self._prefill, piece=piece, head=ends)
