"""Tools in the JSON: definitions, the choice between them, calls of earlier turns, and calls in an answer."""

from __future__ import annotations

import json
import re
from typing import Any

from gateway.http.schema import CompletionRequest, Message
from serving.errors import invalid
from vlm.v1 import chat_pb2


def tools_of(request: CompletionRequest) -> list[chat_pb2.Tool]:
    """The tools on the wire. Schemas keep the order of their keys: it is part of the prompt."""
    return [
        chat_pb2.Tool(
            name=tool.function.name,
            description=tool.function.description or "",
            parameters=_text(tool.function.parameters) if tool.function.parameters else "",
            strict=bool(tool.function.strict),
        )
        for tool in request.tools or ()
    ]


def tool_choice_of(request: CompletionRequest) -> chat_pb2.ToolChoice | None:
    """The choice on the wire; None where the request leaves everything to the model."""
    choice = chat_pb2.ToolChoice()
    match request.tool_choice:
        case None:
            pass
        case str() as word:
            if word != "none" or request.tools:
                setattr(choice, word, True)
        case named:
            choice.name = named.function.name
    if not request.tools and choice.WhichOneof("choice") == "auto":
        choice.ClearField("auto")
    if request.parallel_tool_calls is False:
        choice.one_call = True
    return choice if choice.ByteSize() else None


def calls_of(message: Message, path: str) -> list[chat_pb2.Part]:
    """The calls of an assistant's message.

    Raises:
        ServiceError: INVALID_ARGUMENT; the message is another's.
    """
    if message.tool_calls and message.role != "assistant":
        raise invalid(f"{path}.tool_calls", "is only allowed in an assistant's message")
    return [
        chat_pb2.Part(
            tool_call=chat_pb2.ToolCall(
                id=call.id, name=call.function.name, arguments=_arguments(call.function.arguments)
            )
        )
        for call in message.tool_calls or ()
    ]


def call_id_of(message: Message, path: str) -> str:
    """The call that a tool's message answers; empty for other messages.

    Raises:
        ServiceError: INVALID_ARGUMENT; a tool's message names none.
    """
    if message.role != "tool":
        return ""
    if not message.tool_call_id:
        raise invalid(f"{path}.tool_call_id", "is missing; name the call that this message answers")
    return message.tool_call_id


def tool_names(path: str) -> str:
    """The name in the JSON of a field of `tools` or `tool_choice`."""
    path = re.sub(r"^(tools\[\d+\])\.", r"\1.function.", path)
    return {"tool_choice.name": "tool_choice.function.name"}.get(path, path)


class AnswerCalls:
    """The calls of one answer, collected from deltas."""

    def __init__(self) -> None:
        self._calls: list[dict[str, Any]] = []

    def add(self, delta: chat_pb2.ToolCallDelta) -> None:
        """More of a call."""
        if delta.index == len(self._calls):
            self._calls.append(_function(delta))
        else:
            self._calls[delta.index]["function"]["arguments"] += delta.arguments

    @property
    def whole(self) -> dict[str, Any]:
        """The field of a message: empty where there are no calls."""
        return {"tool_calls": self._calls} if self._calls else {}


def call_delta(delta: chat_pb2.ToolCallDelta) -> dict[str, Any]:
    """The delta of a chunk."""
    if delta.id:
        return {"tool_calls": [{"index": delta.index, **_function(delta)}]}
    return {"tool_calls": [{"index": delta.index, "function": {"arguments": delta.arguments}}]}


def _function(delta: chat_pb2.ToolCallDelta) -> dict[str, Any]:
    return {"id": delta.id, "type": "function", "function": {"name": delta.name, "arguments": delta.arguments}}


def _arguments(arguments: str | dict[str, Any] | None) -> str:
    return arguments if isinstance(arguments, str) else _text(arguments or {})


def _text(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False)
