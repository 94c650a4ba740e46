"""Messages of a conversation: text, images and videos."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from triptych.media import Image, Video, media_to_wire
from vlm.v1 import chat_pb2

Part = str | Image | Video


@dataclass(frozen=True)
class Message:
    """One message of a conversation.

    Attributes:
        role: `system`, `user` or `assistant`.
        parts: Text, images and videos, in the order of the prompt.
        reasoning: The assistant's reasoning before its answer.
    """

    role: str
    parts: tuple[Part, ...]
    reasoning: str = ""


def user(*parts: Part) -> Message:
    """A user message. Images and videos usually come before the question."""
    return Message("user", parts)


def assistant(text: str, *, reasoning: str = "") -> Message:
    """An answer of the model in an earlier turn, and its reasoning before that."""
    return Message("assistant", (text,), reasoning)


def system(text: str) -> Message:
    """A system message; only as the first message."""
    return Message("system", (text,))


def to_wire(messages: Iterable[Message]) -> list[chat_pb2.Message]:
    """Convert messages to the protocol.

    Raises:
        ValueError: A role is unknown.
        TypeError: A part is neither text nor a medium.
    """
    return [
        chat_pb2.Message(role=_role(m.role), parts=[_part(p) for p in m.parts], reasoning=m.reasoning) for m in messages
    ]


def _role(name: str) -> chat_pb2.Role.ValueType:
    try:
        return chat_pb2.Role.Value(f"ROLE_{name.upper()}")
    except ValueError:
        raise ValueError(f"role {name!r} is unknown; use system, user or assistant") from None


def _part(part: Part) -> chat_pb2.Part:
    match part:
        case str():
            return chat_pb2.Part(text=part)
        case Image():
            return chat_pb2.Part(image=media_to_wire(part))
        case Video():
            return chat_pb2.Part(video=media_to_wire(part))
    raise TypeError(f"a part is str, Image or Video, not {type(part).__name__}")
