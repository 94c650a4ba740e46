"""A conversation as frozen values, independent of the wire format."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass


class Role(enum.Enum):
    """Role of a message, with the names of chat templates."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


class MediaKind(enum.Enum):
    """Kind of a medium, with the names of chat templates."""

    IMAGE = "image"
    VIDEO = "video"


@dataclass(frozen=True)
class Text:
    """A text part."""

    text: str


@dataclass(frozen=True)
class Medium:
    """An image or a video.

    Attributes:
        kind: Image or video.
        digest: `sha256:` and the digest of the file.
        options: Preprocessing options, serialized; equal bytes mean equal pixels.
    """

    kind: MediaKind
    digest: str
    options: bytes = b""


@dataclass(frozen=True)
class ToolCall:
    """A call of a tool.

    Attributes:
        id: Ties a result to it.
        name: The tool's name.
        arguments: JSON text.
    """

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Message:
    """One message of a conversation. Only a user's or a tool's has media, only an assistant's has tool calls.

    Attributes:
        role: Its role.
        parts: Text, media and tool calls, in order.
        reasoning: The model's reasoning before an assistant's message.
        tool_call_id: The call that a tool's message answers.
    """

    role: Role
    parts: tuple[Text | Medium | ToolCall, ...]
    reasoning: str = ""
    tool_call_id: str = ""


@dataclass(frozen=True)
class RawPrompt:
    """A prompt without messages, to which no chat template is applied.

    Attributes:
        content: Text or token ids.
        parse_special: Whether names of control tokens in a text are these tokens.
    """

    content: str | tuple[int, ...]
    parse_special: bool = False


@dataclass(frozen=True)
class Layout:
    """The properties of a medium that determine its tokens and positions in the prompt.

    Attributes:
        medium: The medium.
        grid: Patches (t, h, w) before spatial merging; t is 1 for an image.
        token_count: Number of its feature rows.
        timestamps: Of a video: time of each temporal patch in seconds, t of them.
        size_given: Width and height of the file in pixels; zeros if the encoder does not report it.
        size_used: Width and height after resizing, in pixels; zeros if the encoder does not report it.
        frame_times: Of a video: time of each sampled frame in seconds.
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
