"""A peer without an engine: it counts, and fails as its model's name says."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Sequence

import av
from PIL import Image

from benchmarks.peers.protocol import CannotError, Counts, Options, Question, serve


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
        if options.model == "begets":
            # A server that outlives whoever started it.
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], stdin=subprocess.DEVNULL)
            self.versions["child"] = str(child.pid)

    def prefill(self, prompt: Sequence[int]) -> None:
        if self._model == "fails":
            raise RuntimeError("out of order")
        if self._model == "dies":
            os._exit(7)

    def generate(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> int:
        print("and one that talks while it works")  # noqa: T201  # the protocol must bear it
        lazy = self._model == "lazy" and len(prompts) > 1
        return len(prompts) * new_tokens - lazy

    def ask(self, questions: Sequence[Question], new_tokens: int) -> Counts:
        """Count as many tokens as media of such sizes take, and "near-sighted" one for everything."""
        if self._model == "blind" and any(question.clip for question in questions):
            raise CannotError("it takes no video")
        tokens = 1 if self._model == "near-sighted" else sum(map(_tokens, questions))
        return Counts(self.generate([[]] * len(questions), new_tokens), tokens)

    def follow(self, text: str, new_tokens: int) -> Counts:
        if self._model == "forgets":
            raise CannotError("it has no conversations")
        return Counts(new_tokens, 1000 if self._model == "near-sighted" else 10)


def _tokens(question: Question) -> int:
    sizes = [Image.open(io.BytesIO(picture)).size for picture in question.pictures]
    if question.clip is not None:
        with av.open(io.BytesIO(question.clip)) as file:
            stream = file.streams.video[0]
            sizes += [(stream.width, stream.height)] * (question.frames // 2)
    return sum(width * height for width, height in sizes) // 32**2


if __name__ == "__main__":
    serve(TrivialPeer)
