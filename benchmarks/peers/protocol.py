"""The protocol between a race and an engine's process: one JSON object per line.

A peer runs in its own environment, so this module needs only Python. It reports that it is ready, then answers each
request with one line, until its standard input ends. Requests of a text race:

    < {"ready": {"openvino": "2026.4"}, "seconds": 12.3}
    > {"do": "prefill", "prompt": [1, 2, 3]}
    < {"seconds": 0.5}
    > {"do": "generate", "prompts": [[1, 2, 3], [4, 5, 6]], "new_tokens": 16}
    < {"seconds": 4.2, "new_tokens": 32}

Requests of a race with pictures, whose files are in base64:

    > {"do": "ask", "questions": [{"text": "What is it?", "pictures": ["…"]}], "new_tokens": 1}
    < {"seconds": 1.5, "new_tokens": 1, "prompt_tokens": 80}
    > {"do": "follow", "text": "And on the left?", "new_tokens": 1}
    < {"seconds": 0.2, "new_tokens": 1, "prompt_tokens": 95}

Errors are `{"error": "…"}`; requests that the engine does not support, `{"cannot": "…"}`.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol


class CannotError(Exception):
    """An engine does not support a request. The message is the reason, in a few words."""


@dataclass(frozen=True)
class Options:
    """Options of a peer.

    Attributes:
        model: Path of the model.
        threads: Most threads.
        context: Most tokens of a prompt and its answer.
        streams: Most prompts at once.
    """

    model: str
    threads: int
    context: int
    streams: int


@dataclass(frozen=True)
class Question:
    """A question about media, which are before the text.

    Attributes:
        text: The question.
        pictures: JPEG files, each to be encoded with as many pixels as it has.
        clip: An MP4 file, or None.
        frames: Number of sampled frames of the clip, evenly from its first to its last.
        fps: Sampled frames per second.
    """

    text: str
    pictures: tuple[bytes, ...] = ()
    clip: bytes | None = None
    frames: int = 0
    fps: float = 0.0

    def to_wire(self) -> dict[str, Any]:
        """Convert it to JSON."""
        wire: dict[str, Any] = {"text": self.text, "pictures": [_base64(one) for one in self.pictures]}
        if self.clip is not None:
            wire |= {"clip": _base64(self.clip), "frames": self.frames, "fps": self.fps}
        return wire

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> Question:
        """The inverse of `to_wire`."""
        clip = base64.b64decode(wire["clip"]) if "clip" in wire else None
        pictures = tuple(base64.b64decode(one) for one in wire["pictures"])
        return cls(wire["text"], pictures, clip, wire.get("frames", 0), wire.get("fps", 0.0))


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


@dataclass(frozen=True)
class Counts:
    """Token counts of answers, added up.

    Attributes:
        new_tokens: Generated tokens.
        prompt_tokens: Tokens of the prompts, including pictures.
    """

    new_tokens: int
    prompt_tokens: int


class TextModel(Protocol):
    """An engine with a language model. Calls are independent."""

    @property
    def versions(self) -> Mapping[str, str]:
        """Versions of the relevant libraries."""

    def prefill(self, prompt: Sequence[int]) -> None:
        """Prefill a prompt, to the logits of its last position."""

    def generate(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> int:
        """Continue prompts concurrently and greedily, by exactly `new_tokens` tokens each.

        Returns:
            The number of all new tokens.
        """


class PictureModel(Protocol):
    """An engine with pictures."""

    @property
    def versions(self) -> Mapping[str, str]:
        """Versions of the relevant libraries."""

    def ask(self, questions: Sequence[Question], new_tokens: int) -> Counts:
        """Answer questions concurrently and greedily, with `new_tokens` tokens each; each starts a conversation.

        Raises:
            CannotError: The engine does not support such media.
        """

    def follow(self, text: str, new_tokens: int) -> Counts:
        """Answer another question in the conversation of the last call of `ask`, which had one question.

        Raises:
            CannotError: The engine does not support conversations.
        """


def serve(open_model: Callable[[Options], TextModel | PictureModel]) -> None:
    """Run a peer's process: load the engine, answer requests, exit.

    Args:
        open_model: Loads the engine.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    for name in ("threads", "context", "streams"):
        parser.add_argument(f"--{name}", type=int, required=True)
    options = Options(**vars(parser.parse_args()))
    # Libraries write to standard output, also from C: the answers use a descriptor of their own.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(value: Mapping[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    began = time.perf_counter()
    try:
        model = open_model(options)
    except Exception as error:  # noqa: BLE001  # the race reports the peer's name
        answer({"error": f"{type(error).__name__}: {error}"})
        return
    answer({"ready": dict(model.versions), "seconds": time.perf_counter() - began})
    for line in sys.stdin:
        try:
            answer(_done(model, json.loads(line)))
        except CannotError as error:
            answer({"cannot": str(error)})
        except Exception as error:  # noqa: BLE001
            answer({"error": f"{type(error).__name__}: {error}"})


def _done(model: Any, question: Mapping[str, Any]) -> Mapping[str, Any]:
    action = _action(model, question)  # files are decoded from base64 before the clock starts
    began = time.perf_counter()
    result = action()
    return {"seconds": time.perf_counter() - began, **result}


def _action(model: Any, question: Mapping[str, Any]) -> Callable[[], Mapping[str, Any]]:
    match question:
        case {"do": "prefill", "prompt": prompt}:
            return lambda: model.prefill(prompt) or {}
        case {"do": "generate", "prompts": prompts, "new_tokens": count}:
            return lambda: {"new_tokens": model.generate(prompts, count)}
        case {"do": "ask", "questions": wires, "new_tokens": count}:
            questions = [Question.from_wire(wire) for wire in wires]
            return lambda: asdict(model.ask(questions, count))
        case {"do": "follow", "text": text, "new_tokens": count}:
            return lambda: asdict(model.follow(text, count))
    raise ValueError(f"cannot {question['do']}")
