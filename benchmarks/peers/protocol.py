"""What a race and an engine's process say to each other: one JSON object a line.

A peer runs in an environment of its own, so this module needs nothing but Python. It tells that it is ready, then
answers each question with one line, until its standard input ends. Those of a text race:

    < {"ready": {"openvino": "2026.4"}, "seconds": 12.3}
    > {"do": "prefill", "prompt": [1, 2, 3]}
    < {"seconds": 0.5}
    > {"do": "generate", "prompts": [[1, 2, 3], [4, 5, 6]], "new_tokens": 16}
    < {"seconds": 4.2, "new_tokens": 32}

Those of a race over pictures, whose files are in base64:

    > {"do": "ask", "questions": [{"text": "What is it?", "pictures": ["…"]}], "new_tokens": 1}
    < {"seconds": 1.5, "new_tokens": 1, "prompt_tokens": 80}
    > {"do": "follow", "text": "And on the left?", "new_tokens": 1}
    < {"seconds": 0.2, "new_tokens": 1, "prompt_tokens": 95}

What goes wrong is `{"error": "…"}`, what the engine cannot do at all `{"cannot": "…"}`.
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
    """An engine has no way to do what it is asked: the reason, in a few words."""


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


@dataclass(frozen=True)
class Question:
    """What somebody asks about media, which come before the text.

    Attributes:
        text: The question.
        pictures: JPEG files, each to be encoded with as many pixels as it has.
        clip: An MP4 file, or None.
        frames: How many frames of the clip are looked at, evenly from its first to its last.
        fps: How many of a second these are.
    """

    text: str
    pictures: tuple[bytes, ...] = ()
    clip: bytes | None = None
    frames: int = 0
    fps: float = 0.0

    def to_wire(self) -> dict[str, Any]:
        """As JSON takes it."""
        wire: dict[str, Any] = {"text": self.text, "pictures": [_base64(one) for one in self.pictures]}
        if self.clip is not None:
            wire |= {"clip": _base64(self.clip), "frames": self.frames, "fps": self.fps}
        return wire

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> Question:
        """What `to_wire` made."""
        clip = base64.b64decode(wire["clip"]) if "clip" in wire else None
        pictures = tuple(base64.b64decode(one) for one in wire["pictures"])
        return cls(wire["text"], pictures, clip, wire.get("frames", 0), wire.get("fps", 0.0))


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


@dataclass(frozen=True)
class Counts:
    """What an engine says of answers, all of them together.

    Attributes:
        new_tokens: Tokens that it wrote.
        prompt_tokens: Tokens of the prompts, of which pictures are a part.
    """

    new_tokens: int
    prompt_tokens: int


class TextModel(Protocol):
    """An engine with a language model. Nothing is remembered from one call to the next."""

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


class PictureModel(Protocol):
    """An engine that sees."""

    @property
    def versions(self) -> Mapping[str, str]:
        """Of the libraries that matter."""

    def ask(self, questions: Sequence[Question], new_tokens: int) -> Counts:
        """Answer questions at the same time, greedily, by exactly so many tokens each; each begins a conversation.

        Raises:
            CannotError: The engine does not take such media.
        """

    def follow(self, text: str, new_tokens: int) -> Counts:
        """Answer another question in the conversation that the last call of `ask` began, which asked one.

        Raises:
            CannotError: The engine has no conversations.
        """


def serve(open_model: Callable[[Options], TextModel | PictureModel]) -> None:
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
        except CannotError as error:
            answer({"cannot": str(error)})
        except Exception as error:  # noqa: BLE001
            answer({"error": f"{type(error).__name__}: {error}"})


def _done(model: Any, question: Mapping[str, Any]) -> Mapping[str, Any]:
    deed = _deed(model, question)  # files are decoded from base64 before the clock starts
    began = time.perf_counter()
    told = deed()
    return {"seconds": time.perf_counter() - began, **told}


def _deed(model: Any, question: Mapping[str, Any]) -> Callable[[], Mapping[str, Any]]:
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
