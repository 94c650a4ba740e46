"""Converts the tools of a request, and the calls in its messages, to values of the core."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

from decoder_service.chat import Role, ToolCall
from decoder_service.request.tools import Choice, Tool, Tools
from serving.errors import invalid
from vlm.v1 import chat_pb2

MAX_TOOLS = 128
MAX_TOOL_BYTES = 1 << 18

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_CHOICES = {"auto": Choice.AUTO, "none": Choice.NONE, "required": Choice.REQUIRED, "name": Choice.REQUIRED}


def tools(sent: Iterable[chat_pb2.Tool], choice: chat_pb2.ToolChoice | None = None) -> Tools:
    """Check tools and the choice between them.

    Raises:
        ServiceError: INVALID_ARGUMENT, with the field's path.
    """
    found: dict[str, Tool] = {}
    size = 0
    for index, tool in enumerate(sent):
        path = f"tools[{index}]"
        if index == MAX_TOOLS:
            raise invalid("tools", f"has more than {MAX_TOOLS} tools")
        if not _NAME.fullmatch(tool.name):
            raise invalid(f"{path}.name", f"is {tool.name[:80]!r}; use 1 to 64 letters, digits, _, - and .")
        if tool.name in found:
            raise invalid(f"{path}.name", f"is {tool.name!r}, as is another tool's")
        size += len(tool.description.encode()) + len(tool.parameters.encode())
        if tool.parameters:
            schema = _json(tool.parameters, f"{path}.parameters")
            if not isinstance(schema, dict) or schema.get("type", "object") != "object":
                raise invalid(f"{path}.parameters", 'must be a JSON schema of an object: {"type": "object", …}')
        found[tool.name] = Tool(tool.name, tool.description, tool.parameters, tool.strict)
    if size > MAX_TOOL_BYTES:
        raise invalid("tools", f"has {size} bytes of text and may have {MAX_TOOL_BYTES}")
    if choice is None:
        return Tools(tuple(found.values()))
    which = choice.WhichOneof("choice")
    if which in ("required", "name") and not found:
        raise invalid("tool_choice", "asks for a call, and there are no tools; send them, or leave it unset")
    if which == "name" and choice.name not in found:
        raise invalid("tool_choice.name", f"is {choice.name[:80]!r}, which is none of the tools")
    if which in ("auto", "none", "required") and not getattr(choice, which):
        raise invalid(f"tool_choice.{which}", "is false; set another choice, or leave it unset")
    only = choice.name if which == "name" else ""
    return Tools(tuple(found.values()), _CHOICES.get(which or "auto", Choice.AUTO), only, choice.one_call)


def call(sent: chat_pb2.ToolCall, role: Role, path: str) -> ToolCall:
    """Check a call of an earlier turn. Its arguments need not be JSON: models write others, too.

    Raises:
        ServiceError: INVALID_ARGUMENT, with the field's path.
    """
    if role is not Role.ASSISTANT:
        raise invalid(path, f"only ROLE_ASSISTANT calls tools; this message is the {role.value}'s")
    if not sent.name:
        raise invalid(f"{path}.name", "is empty; name the tool that was called")
    return ToolCall(sent.id, sent.name, sent.arguments)


def _json(text: str, path: str) -> object:
    try:
        return json.loads(text)
    except ValueError as error:
        raise invalid(path, f"is no JSON: {error}") from error
