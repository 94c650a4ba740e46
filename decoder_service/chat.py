"""A conversation as the core sees it: frozen values that know nothing of the wire."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass


class Role(enum.Enum):
    """Who speaks, named as chat templates do."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"


class MediaKind(enum.Enum):
    """What a medium is, named as chat templates do."""

    IMAGE = "image"
    VIDEO = "video"


@dataclass(frozen=True)
class Text:
    """Something said."""

    text: str


@dataclass(frozen=True)
class Medium:
    """Something shown.

    Attributes:
        kind: Image or video.
        digest: `sha256:` and the digest of the file.
        options: How it becomes pixels: bytes that are equal where the pixels are.
    """

    kind: MediaKind
    digest: str
    options: bytes = b""


@dataclass(frozen=True)
class Message:
    """One turn. Only a user's holds media.

    Attributes:
        role: Who speaks.
        parts: What is said and shown.
        reasoning: What the model thought before it said so; only an assistant's.
    """

    role: Role
    parts: tuple[Text | Medium, ...]
    reasoning: str = ""


@dataclass(frozen=True)
class Layout:
    """What must be known of a medium to give it its place in the prompt.

    Attributes:
        medium: Which medium.
        grid: Patches (t, h, w) before spatial merging; t is 1 for an image.
        token_count: Rows of its features: t x h x w / spatial_merge_size².
        timestamps: Of a video: seconds of each temporal patch, t of them.
        size_given: Width and height in pixels, as the file has them; zeros where the encoder does not tell.
        size_used: Width and height in pixels after resizing; zeros where the encoder does not tell.
        frame_times: Of a video: seconds of each sampled frame.
    """

    medium: Medium
    grid: tuple[int, int, int]
    token_count: int
    timestamps: tuple[float, ...] = ()
    size_given: tuple[int, int] = (0, 0)
    size_used: tuple[int, int] = (0, 0)
    frame_times: tuple[float, ...] = ()


def media_of(messages: Sequence[Message]) -> tuple[Medium, ...]:
    """The media of a conversation in order of appearance."""
    return tuple(part for message in messages for part in message.parts if isinstance(part, Medium))


def first_of_each(media: Sequence[Medium]) -> tuple[int, ...]:
    """Index of the first appearance of every distinct medium, in order."""
    first: dict[Medium, int] = {}
    for index, medium in enumerate(media):
        first.setdefault(medium, index)
    return tuple(first.values())
