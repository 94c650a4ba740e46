"""Tools: what the model may call, and its calls."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from serving.errors import Code
from triptych.errors import AnswerError
from vlm.v1 import chat_pb2


@dataclass(frozen=True)
class Tool:
    """A function that the model may call.

    Attributes:
        name: Letters, digits, `_`, `-` and `.`; at most 64.
        description: What it does, for the model.
        parameters: JSON schema of its arguments; None if it has none.
        strict: Whether the arguments must keep the schema.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] | None = None
    strict: bool = False

    @classmethod
    def of(
        cls, source: Callable[..., Any], *, name: str = "", description: str | None = None, strict: bool = False
    ) -> Tool:
        """Make a tool from a function, whose annotations are the schema, or from a pydantic model or a dataclass.

        Args:
            source: The function or the type. `Annotated[int, pydantic.Field(description="…")]` describes an argument.
            name: By default its own.
            description: By default its docstring.
            strict: As in `Tool`.

        Raises:
            TypeError: An annotation has no JSON schema, or arguments cannot be given by name.
        """
        from triptych import schemas  # noqa: PLC0415  # imports pydantic

        parameters = (schemas.schema_of if isinstance(source, type) else schemas.arguments_of)(source)
        if description is None:
            description = inspect.cleandoc(source.__doc__ or "")
        return cls(name or source.__name__, description, parameters, strict)


ToolLike = Tool | Callable[..., Any] | Mapping[str, Any]
"""A tool, what `Tool.of` takes, or a tool as in OpenAI's JSON."""


@dataclass(frozen=True)
class ToolCall:
    """A call of a tool, as the model wrote it.

    Attributes:
        id: Ties a result to the call.
        name: Name of the tool.
        arguments: The arguments, a JSON object as text.
    """

    id: str
    name: str
    arguments: str

    def parse(self) -> dict[str, Any]:
        """The arguments by name.

        Raises:
            AnswerError: They are no JSON object, mostly because the answer was cut.
        """
        try:
            arguments = json.loads(self.arguments or "{}")
        except ValueError:
            arguments = None
        if not isinstance(arguments, dict):
            message = f"the arguments of {self.name} are no JSON object; was the answer cut by a limit?"
            raise AnswerError(Code.INTERNAL, "ANSWER_INVALID", message)
        return arguments


def tools_to_wire(tools: Iterable[ToolLike]) -> list[chat_pb2.Tool]:
    """Convert tools to the protocol.

    Raises:
        TypeError: One is no tool.
    """
    if isinstance(tools, str | Mapping | Tool) or not isinstance(tools, Iterable):
        raise TypeError(f"tools is a list of tools, not {type(tools).__name__}")
    return [_tool(tool) for tool in tools]


def _tool(given: ToolLike) -> chat_pb2.Tool:
    match given:
        case Tool():
            tool = given
        case Mapping():
            function = given.get("function", given)
            try:
                tool = Tool(
                    function["name"],
                    function.get("description") or "",
                    function.get("parameters"),
                    bool(function.get("strict")),
                )
            except (AttributeError, KeyError, TypeError):
                raise TypeError('a tool is {"type": "function", "function": {"name": …, "parameters": …}}') from None
        case _ if callable(given):
            tool = Tool.of(given)
        case _:
            raise TypeError(f"a tool is a Tool, a function, a type or a dict, not {type(given).__name__}")
    parameters = "" if tool.parameters is None else json.dumps(tool.parameters, ensure_ascii=False)
    return chat_pb2.Tool(name=tool.name, description=tool.description, parameters=parameters, strict=tool.strict)


def choice_to_wire(choice: str | Tool | Callable[..., Any] | None, parallel: bool | None) -> chat_pb2.ToolChoice | None:
    """Convert `tool_choice` and `parallel_tool_calls` to the protocol; None if neither is set."""
    if choice is None and parallel is None:
        return None
    wire = chat_pb2.ToolChoice(one_call=parallel is False)
    match choice:
        case None:
            pass
        case "auto":
            wire.auto = True
        case "none":
            wire.none = True
        case "required":
            wire.required = True
        case str():
            wire.name = choice
        case Tool():
            wire.name = choice.name
        case _ if callable(choice):
            wire.name = choice.__name__
        case _:
            raise TypeError(f"tool_choice is auto, none, required or a tool, not {type(choice).__name__}")
    return wire
