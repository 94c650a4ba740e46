"""A peer without an engine: it counts, and fails as its model's name says."""

from __future__ import annotations

import os
from collections.abc import Sequence

from benchmarks.peers.protocol import Options, serve


class TrivialPeer:
    """Writes as many tokens as it is asked for.

    Args:
        options: `model` says what goes wrong, if anything.
    """

    def __init__(self, options: Options) -> None:
        print("a library that greets on standard output")  # noqa: T201  # the protocol must bear it
        os.write(1, b"and one that does so from C\n")
        if options.model == "cannot load":
            raise ValueError("no such model")
        self.versions = {
            "trivial": "1",
            "opened": f"{options.threads} {options.context} {options.streams}",
            "told": os.environ.get("TOLD", ""),
        }
        self._model = options.model

    def prefill(self, prompt: Sequence[int]) -> None:
        if self._model == "fails":
            raise RuntimeError("out of order")
        if self._model == "dies":
            os._exit(7)

    def generate(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> int:
        print("and one that talks while it works")  # noqa: T201  # the protocol must bear it
        lazy = self._model == "lazy" and len(prompts) > 1
        return len(prompts) * new_tokens - lazy


if __name__ == "__main__":
    serve(TrivialPeer)
