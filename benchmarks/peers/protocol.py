"""What the race and an engine's process say to each other: one JSON object a line.

A peer runs in an environment of its own, so this module needs nothing but Python. It tells that it is ready, then
answers each question with one line, until its standard input ends:

    < {"ready": {"openvino": "2026.4"}, "seconds": 12.3}
    > {"do": "prefill", "prompt": [1, 2, 3]}
    < {"seconds": 0.5}
    > {"do": "generate", "prompts": [[1, 2, 3], [4, 5, 6]], "new_tokens": 16}
    < {"seconds": 4.2, "new_tokens": 32}

What goes wrong is `{"error": "…"}`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Options:
    """How a peer is opened.

    Attributes:
        model: What it loads.
        threads: Threads that it may use.
        context: Most tokens of a prompt and its answer.
        streams: Most prompts at once.
    """

    model: str
    threads: int
    context: int
    streams: int


class Model(Protocol):
    """An engine with a model. Nothing is remembered from one call to the next."""

    @property
    def versions(self) -> Mapping[str, str]:
        """Of the libraries that matter."""

    def prefill(self, prompt: Sequence[int]) -> None:
        """Read a prompt, to the logits of its last position."""

    def generate(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> int:
        """Continue prompts at the same time, greedily, by exactly so many tokens each.

        Returns:
            The new tokens of all of them.
        """


def serve(open_model: Callable[[Options], Model]) -> None:
    """The whole life of a peer's process: open, answer, end.

    Args:
        open_model: Loads the engine.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    for name in ("threads", "context", "streams"):
        parser.add_argument(f"--{name}", type=int, required=True)
    options = Options(**vars(parser.parse_args()))
    # Libraries write what they like to standard output, also from C: the answers have a descriptor of their own.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(value: Mapping[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    began = time.perf_counter()
    try:
        model = open_model(options)
    except Exception as error:  # noqa: BLE001  # the race tells which peer it was
        answer({"error": f"{type(error).__name__}: {error}"})
        return
    answer({"ready": dict(model.versions), "seconds": time.perf_counter() - began})
    for line in sys.stdin:
        try:
            answer(_done(model, json.loads(line)))
        except Exception as error:  # noqa: BLE001
            answer({"error": f"{type(error).__name__}: {error}"})


def _done(model: Model, question: Mapping[str, Any]) -> Mapping[str, Any]:
    began = time.perf_counter()
    match question["do"]:
        case "prefill":
            model.prefill(question["prompt"])
            return {"seconds": time.perf_counter() - began}
        case "generate":
            new_tokens = model.generate(question["prompts"], question["new_tokens"])
            return {"seconds": time.perf_counter() - began, "new_tokens": new_tokens}
        case other:
            raise ValueError(f"cannot {other}")
