"""Grammars of answers that call tools, for llguidance.

The marks of a call are tokens of their own in Qwen's vocabulary, and written as such (`<tool_call>` without quotes).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from llguidance import StructTag

from decoder_service.output.constraint import JSON_OPTIONS, Form
from decoder_service.output.tool_calls import CLOSING, OPENING


@dataclass(frozen=True)
class ToolSchema:
    """What a call of a tool may be.

    Attributes:
        name: The tool's name.
        parameters: JSON schema of its arguments, as text; empty: it has none.
        strict: Whether the arguments must keep the schema also where the model is free to call or not.
    """

    name: str
    parameters: str = ""
    strict: bool = False


def must_call(tools: Sequence[ToolSchema], *, one: bool) -> Form:
    """The form of an answer that is one call or several, and nothing else. The arguments keep their schemas.

    Args:
        tools: Those that may be called; at least one.
        one: Whether there is one call only.
    """
    return Form("grammar", "\n".join(["start: call" if one else 'start: call ("\\n" call)*', *_calls(tools)]))


def may_call(tools: Sequence[ToolSchema]) -> Form | None:
    """The form of free text with calls in it whose arguments keep their schemas; None where no tool is strict."""
    if not any(tool.strict for tool in tools):
        return None
    tags = [
        StructTag(trigger=OPENING, begin=OPENING + _begin(tool), grammar=_schema(tool, strict=tool.strict), end=_END)
        for tool in tools
    ]
    lark = StructTag.to_grammar(tags)
    # The library writes the end as text.
    return Form("grammar", lark.replace(json.dumps(_END), _END_RULE))


def calls_or(tools: Sequence[ToolSchema], schema: str, *, one: bool) -> Form:
    """The form of an answer that is calls, or JSON that keeps a schema.

    Args:
        tools: As in `must_call`.
        schema: The JSON schema, as text.
        one: As in `must_call`.
    """
    start = "start: calls | answer"
    calls = "calls: call" if one else 'calls: call ("\\n" call)*'
    return Form("grammar", "\n".join([start, calls, f"answer: %json {_with_options(schema)}", *_calls(tools)]))


_END = f"}}\n{CLOSING}"
_END_RULE = f"{json.dumps('}' + chr(10))} {CLOSING}"


def _begin(tool: ToolSchema) -> str:
    return f'\n{{"name": {json.dumps(tool.name)}, "arguments": '


def _calls(tools: Sequence[ToolSchema]) -> list[str]:
    names = [f"call_{number}" for number in range(len(tools))]
    rules = [
        f"{name}: {OPENING} {json.dumps(_begin(tool))} %json {_schema(tool, strict=True)} {_END_RULE}"
        for name, tool in zip(names, tools, strict=True)
    ]
    return [f"call: {' | '.join(names)}", *rules]


def _schema(tool: ToolSchema, *, strict: bool) -> str:
    if not strict:
        return _with_options('{"type": "object"}')
    schema = json.loads(tool.parameters) if tool.parameters else {"properties": {}, "additionalProperties": False}
    return _with_options(json.dumps({"type": "object", **schema}))


def _with_options(schema: str) -> str:
    """A schema with the compiler's options in it, which have no other place inside of a grammar."""
    value = json.loads(schema)
    if isinstance(value, dict):
        value["x-guidance"] = JSON_OPTIONS
    return json.dumps(value)
