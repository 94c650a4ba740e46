"""Structured output in the JSON: OpenAI's `response_format`, and what vLLM, SGLang and llama.cpp call it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gateway.http.schema import Options
from serving.errors import invalid, unimplemented
from vlm.v1 import chat_pb2


@dataclass(frozen=True)
class AskedForm:
    """The form that a request asks for.

    Attributes:
        form: On the wire.
        name: Path of the field in the JSON that asks for it.
    """

    form: chat_pb2.ResponseFormat
    name: str


def form_of(request: Options) -> AskedForm | None:
    """The form that the answer must have, or None.

    Raises:
        ServiceError: INVALID_ARGUMENT, the field is not as it should be or two fields ask for a form; UNIMPLEMENTED, it
            is of a kind that is not served.
    """
    asked = [*_openai(request.response_format), *_vllm(request.structured_outputs)]
    for name, make in _FIELDS.items():
        value = getattr(request, name)
        if value is not None and value not in ("", [], {}):
            asked.append(AskedForm(make(value), name))
    if len(asked) > 1:
        raise invalid(asked[1].name, f"asks for a form, and so does {asked[0].name}; send one of them")
    return asked[0] if asked else None


def _openai(value: dict[str, Any] | None) -> list[AskedForm]:
    name = "response_format"
    if value is None:
        return []
    match value.get("type"):
        case "text":
            return []
        case "json_object":
            return [AskedForm(chat_pb2.ResponseFormat(json_object=True), name)]
        case "json_schema":
            holder = value.get("json_schema")
            if not isinstance(holder, dict):
                raise invalid(f"{name}.json_schema", 'is missing; send {"name": …, "schema": {…}}')
            if not isinstance(schema := holder.get("schema", {}), dict | bool):
                raise invalid(f"{name}.json_schema.schema", "must be an object")
            return [AskedForm(_json(schema), f"{name}.json_schema.schema")]
        case _:
            raise invalid(f"{name}.type", "must be text, json_object or json_schema")


def _vllm(value: dict[str, Any] | None) -> list[AskedForm]:
    name = "structured_outputs"
    asked = []
    for kind, given in (value or {}).items():
        if given in (None, False, "", [], {}):
            continue
        path = f"{name}.{kind}"
        make = _KINDS.get(kind)
        if make is None:
            if kind in _VLLM_SETTINGS:
                continue
            raise unimplemented(path, f"use one of {', '.join(_KINDS)}")
        try:
            asked.append(AskedForm(make(given), path))
        except TypeError as error:
            raise invalid(path, "has another type than it should have") from error
    return asked


def _json(value: object) -> chat_pb2.ResponseFormat:
    # The order of the properties is kept: it is the order in which they are answered.
    return chat_pb2.ResponseFormat(json_schema=value if isinstance(value, str) else json.dumps(value))


def _regex(value: str) -> chat_pb2.ResponseFormat:
    return chat_pb2.ResponseFormat(regex=value)


def _grammar(value: str) -> chat_pb2.ResponseFormat:
    return chat_pb2.ResponseFormat(grammar=value)


def _choice(value: list[str]) -> chat_pb2.ResponseFormat:
    return chat_pb2.ResponseFormat(choice=chat_pb2.Choice(values=value))


_KINDS: dict[str, Callable[[Any], chat_pb2.ResponseFormat]] = {
    "json": _json,
    "json_object": lambda _: chat_pb2.ResponseFormat(json_object=True),
    "regex": _regex,
    "choice": _choice,
    "grammar": _grammar,
}

# Settings of vLLM's backends, which are not read: JSON is written in one way here.
_VLLM_SETTINGS = {"disable_fallback", "disable_any_whitespace", "disable_additional_properties", "whitespace_pattern"}

_FIELDS: dict[str, Callable[[Any], chat_pb2.ResponseFormat]] = {
    "guided_json": _json,
    "guided_regex": _regex,
    "guided_choice": _choice,
    "guided_grammar": _grammar,
    "regex": _regex,
    "ebnf": _grammar,
    "grammar": _grammar,
    "json_schema": _json,
}
