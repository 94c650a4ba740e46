"""Messages as in OpenAI's JSON, from dictionaries."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from triptych.media import Image, Video
from triptych.messages import Message, Part
from triptych.tools import ToolCall

_ROLES = {"developer": "system"}  # other names are the same
_REASONING = ("reasoning_content", "reasoning")


def from_openai(given: Mapping[str, Any], path: str) -> Message:
    """Convert a message.

    `content` is text, or a list of parts of the types `text`, `image_url`, `video_url`, `image` and `video`. A medium
    is a `data:` URL or anything else that `Image` and `Video` take, but a string is never a path: a conversation that
    comes from outside must not choose files.

    Args:
        given: The message.
        path: Its place in the request, for errors.

    Raises:
        ValueError: A part of it is not understood; the message names its place.
        OSError: A file cannot be read.
    """
    role = given.get("role")
    if not isinstance(role, str):
        raise ValueError(f"{path}.role is {role!r}: it must be system, developer, user, assistant or tool")
    content = given.get("content")
    parts: list[Part] = []
    match content:
        case None:
            pass
        case str():
            parts.append(content)
        case list() | tuple():
            parts += [_part(part, f"{path}.content[{index}]") for index, part in enumerate(content)]
        case _:
            raise ValueError(f"{path}.content is {type(content).__name__}: it must be a string or a list of parts")
    parts += [_call(call, f"{path}.tool_calls[{index}]") for index, call in enumerate(given.get("tool_calls") or ())]
    reasoning = next((given[name] for name in _REASONING if given.get(name)), "")
    return Message(_ROLES.get(role, role), tuple(parts), reasoning, given.get("tool_call_id") or "")


def _part(part: Any, path: str) -> Part:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else None
    match kind:
        case "text" if isinstance(part.get("text"), str):
            return str(part["text"])
        case "image_url" | "image":
            return _medium(Image, part.get(kind), path)
        case "video_url" | "video":
            return _medium(Video, part.get(kind), path)
        case "text":
            raise ValueError(f"{path}.text must be a string")
    raise ValueError(f"{path}.type is {kind!r}: it must be text, image_url, video_url, image or video")


def _medium(kind: Callable[..., Image | Video], given: Any, path: str) -> Image | Video:
    if not isinstance(given, Mapping):
        given = {"url": given}
    detail, source = given.get("detail"), given.get("url")
    if isinstance(source, str) and not source.lower().startswith("data:"):
        raise ValueError(f"{path} has the URL {source[:80]!r}: send a data: URL, or pathlib.Path(…) for a file")
    try:
        return kind(source, detail=None if detail == "auto" else detail)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def _call(call: Any, path: str) -> ToolCall:
    try:
        function = call["function"]
        arguments = function.get("arguments") or "{}"
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        return ToolCall(call["id"], function["name"], text)
    except (AttributeError, KeyError, TypeError):
        raise ValueError(f'{path} must be {{"id": …, "function": {{"name": …, "arguments": …}}}}') from None
