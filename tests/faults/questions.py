"""The questions of the load: requests whose answers are known from a system at rest."""

from __future__ import annotations

import base64
import itertools
from dataclasses import dataclass
from typing import Any

import triptych
from tests.containers.load import with_comment
from tests.pictures import noise, png, video

_serial = itertools.count()


@dataclass(frozen=True)
class Question:
    """A question, in the forms of both doors. Decoding is greedy.

    Attributes:
        words: The text.
        picture: A PNG file.
        clip: A Matroska file.
        fresh: Whether the picture is sent in a file of its own each time, so that no cache has its features.
        max_tokens: Length of the answer.
    """

    words: str
    picture: bytes = b""
    clip: bytes = b""
    fresh: bool = False
    max_tokens: int = 24

    def file(self) -> bytes:
        """The picture's file."""
        return with_comment(self.picture, f"{next(_serial)}") if self.fresh else self.picture

    def message(self) -> triptych.Message:
        """For our own client."""
        media = [triptych.Image(self.file())] if self.picture else [triptych.Video(self.clip)] if self.clip else []
        return triptych.user(*media, self.words)

    def body(self, *, stream: bool) -> dict[str, Any]:
        """The JSON of `/v1/chat/completions`."""
        content: list[dict[str, Any]] = []
        if self.picture:
            content.append({"type": "image_url", "image_url": {"url": _data_url(self.file(), "image/png")}})
        if self.clip:
            content.append({"type": "video_url", "video_url": {"url": _data_url(self.clip, "video/x-matroska")}})
        content.append({"type": "text", "text": self.words})
        messages = [{"role": "user", "content": content}]
        return {"messages": messages, "max_tokens": self.max_tokens, "ignore_eos": True, "stream": stream}


def _data_url(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def questions() -> list[Question]:
    """Text, pictures and a clip; half of the pictures are new to every cache each time."""
    pictures = [
        png(noise(width, height, seed)) for seed, (width, height) in enumerate([(160, 128), (96, 224), (64, 64)])
    ]
    clip = video([noise(96, 64, seed) for seed in range(8)], 4)
    return [
        Question("What is the colour of the sky?"),
        Question("Count to ten in words, please."),
        Question("hello", max_tokens=48),
        Question("Describe.", picture=pictures[0], fresh=True),
        Question("Describe.", picture=pictures[1]),
        Question("How many?", picture=pictures[2], fresh=True),
        Question("What is to the left?", picture=pictures[1], fresh=True),
        Question("What happens?", clip=clip),
    ]
