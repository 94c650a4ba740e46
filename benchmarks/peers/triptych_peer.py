"""Triptych's own engine as a peer. `DECODER_*` variables apply, as in `triptych bench decoder`."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks import engines
from benchmarks.peers.protocol import Options, serve
from benchmarks.stream import Stream, all_of, text_request
from decoder_service.families.registry import family_of
from serving.bundle import Bundle


class TriptychPeer:
    """The engine, on an event loop that runs during calls.

    Args:
        options: Options of the model.
    """

    def __init__(self, options: Options) -> None:
        self.versions = {name: importlib.metadata.version(name) for name in ("triptych", "onnxruntime")}
        self._runner = asyncio.Runner()
        self._stack = contextlib.AsyncExitStack()
        bundle = Bundle.open(Path(options.model))
        self._family = family_of(bundle)
        opening = engines.running(bundle, threads=options.threads, slots=options.streams)
        self._engine = self._runner.run(self._stack.enter_async_context(opening)).engine

    def prefill(self, prompt: Sequence[int]) -> None:
        """See `TextModel`. One token is sampled, at negligible cost."""
        self.generate([prompt], 1)

    def generate(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> int:
        """See `Model`."""
        requests = [text_request(self._family, np.asarray(prompt, np.int32), new_tokens) for prompt in prompts]
        streams = [Stream(self._engine, request) for request in requests]
        self._runner.run(all_of(streams))
        return sum(len(stream.times) for stream in streams)


if __name__ == "__main__":
    serve(TriptychPeer)
