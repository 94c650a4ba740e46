"""Messages of a conversation: text, images, videos, and calls of tools."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from triptych.events import Answer
from triptych.media import Image, Video, media_to_wire, medium_of
from triptych.tools import ToolCall
from vlm.v1 import chat_pb2

if TYPE_CHECKING:
    from triptych.prompts import Prompt
    from triptych.sources import ImageSource

    PartLike = Image | Video | ImageSource
    """Text, a medium, or what an image is made of; a file whose name ends like a video's is a video."""

Part = str | Image | Video | ToolCall

_shortened = reprlib.Repr()
_shortened.maxstring = 200


@dataclass(frozen=True, repr=False)
class Message:
    """One message of a conversation.

    Attributes:
        role: `system`, `user`, `assistant` or `tool`.
        parts: Text, images, videos and calls of tools, in the order of the prompt.
        reasoning: The assistant's reasoning before its answer.
        tool_call_id: Of a tool's result: the id of the call.
    """

    role: str
    parts: tuple[Part, ...]
    reasoning: str = ""
    tool_call_id: str = ""

    def __repr__(self) -> str:
        said = [_shortened.repr(part) if isinstance(part, str) else repr(part) for part in self.parts]
        rest = ((name, getattr(self, name)) for name in ("reasoning", "tool_call_id"))
        said += [f"{name}={_shortened.repr(value)}" for name, value in rest if value]
        return f"{self.role}({', '.join(said)})"


if TYPE_CHECKING:
    MessageLike = Message | str | Mapping[str, Any]
    Messages = MessageLike | Iterable[MessageLike]
    Conversation = Messages | Prompt
    """Messages, or a raw prompt in their place."""


def user(*parts: PartLike) -> Message:
    """A user message. Images and videos usually come before the question.

    Args:
        parts: Strings are text. `Image` and `Video`, or what an `Image` is made of: a path object, bytes, a file
            object, an image of Pillow, an array of numpy. A file whose name ends like a video's is a `Video`.

    Raises:
        OSError: A file cannot be read.
        TypeError: A part is nothing of this.
        ValueError: As for `Image`.
    """
    return Message("user", tuple(map(_as_part, parts)))


def assistant(said: str | Answer, *, reasoning: str = "", tool_calls: Iterable[ToolCall] = ()) -> Message:
    """An answer of the model in an earlier turn.

    Args:
        said: Its text, or the `Answer`, whose reasoning and calls come along.
        reasoning: Its reasoning.
        tool_calls: Its calls of tools.
    """
    if isinstance(said, Answer):
        reasoning, tool_calls, said = reasoning or said.reasoning, tuple(tool_calls) or said.tool_calls, said.text
    calls = tuple(tool_calls)
    return Message("assistant", calls if calls and not said else (said, *calls), reasoning)


def system(text: str) -> Message:
    """A system message."""
    return Message("system", (text,))


def tool(call: ToolCall | str, *result: object) -> Message:
    """The result of a tool.

    Args:
        call: The call, or its id.
        result: Text, images and videos, as for `user`; any other value is written as JSON.

    Raises:
        TypeError: A value cannot be written as JSON.
    """
    return Message("tool", tuple(map(_as_result, result)), tool_call_id=call if isinstance(call, str) else call.id)


def _as_part(value: object) -> Part:
    if isinstance(value, str | Image | Video | ToolCall):
        return value
    try:
        return medium_of(value)  # type: ignore[arg-type]  # anything else is its TypeError
    except TypeError as error:
        kinds = "text, an Image, a Video, or what an Image is made of"
        raise TypeError(f"a part is {kinds}, not {type(value).__name__}: {error}") from None


def _as_result(value: object) -> Part:
    if hasattr(value, "model_dump_json"):  # a pydantic model
        return str(value.model_dump_json())
    if value is None or isinstance(value, bool | int | float | dict | list | tuple):
        return json.dumps(value, ensure_ascii=False)
    return _as_part(value)


def to_messages(conversation: Messages) -> list[Message]:
    """The messages of a conversation: a string or one message is the user's only one.

    Raises:
        TypeError: It is no conversation.
        ValueError: A dictionary is no message.
    """
    from triptych.openai_messages import from_openai  # noqa: PLC0415  # it needs the names of this module

    if isinstance(conversation, str | Message | Mapping):
        conversation = [conversation]
    given: Any  # whatever people pass
    messages = []
    for index, given in enumerate(conversation):
        match given:
            case Message():
                messages.append(given)
            case str():
                messages.append(user(given))
            case Mapping():
                messages.append(from_openai(given, f"messages[{index}]"))
            case _:
                wanted = "a Message, a string or a dict; images go into user(…)"
                raise TypeError(f"messages[{index}] is {wanted}, not {type(given).__name__}")
    return messages


def to_wire(messages: Iterable[Message]) -> list[chat_pb2.Message]:
    """Convert messages to the protocol.

    Raises:
        ValueError: A role is unknown.
        TypeError: A part is neither text nor a medium.
    """
    return [
        chat_pb2.Message(
            role=_role(m.role), parts=[_part(p) for p in m.parts], reasoning=m.reasoning, tool_call_id=m.tool_call_id
        )
        for m in messages
    ]


def _role(name: str) -> chat_pb2.Role.ValueType:
    try:
        return chat_pb2.Role.Value(f"ROLE_{name.upper()}")
    except ValueError:
        raise ValueError(f"role {name!r} is unknown; use system, user, assistant or tool") from None


def _part(part: Part) -> chat_pb2.Part:
    match part:
        case str():
            return chat_pb2.Part(text=part)
        case Image():
            return chat_pb2.Part(image=media_to_wire(part))
        case Video():
            return chat_pb2.Part(video=media_to_wire(part))
        case ToolCall():
            call = chat_pb2.ToolCall(id=part.id, name=part.name, arguments=part.arguments)
            return chat_pb2.Part(tool_call=call)
    raise TypeError(f"a part is str, Image, Video or ToolCall, not {type(part).__name__}")
