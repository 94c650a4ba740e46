"""JSON schemas of Python's types and functions, by pydantic. Imported only where one is given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import pydantic
from pydantic.json_schema import GenerateJsonSchema

T = TypeVar("T")


class _Closed(GenerateJsonSchema):
    """Without further properties, unless a type allows them: the answer could be lengthened by them for ever."""

    def model_schema(self, schema: Any) -> dict[str, Any]:
        return {"additionalProperties": False, **super().model_schema(schema)}

    def dataclass_schema(self, schema: Any) -> dict[str, Any]:
        return {"additionalProperties": False, **super().dataclass_schema(schema)}

    def typed_dict_schema(self, schema: Any) -> dict[str, Any]:
        return {"additionalProperties": False, **super().typed_dict_schema(schema)}


def schema_of(form: Any) -> dict[str, Any]:
    """The JSON schema of a type: a pydantic model, a dataclass, a TypedDict, `list[int]`, ….

    Raises:
        TypeError: It has none.
    """
    try:
        return pydantic.TypeAdapter(form).json_schema(schema_generator=_Closed)
    except (pydantic.errors.PydanticUserError, pydantic.errors.PydanticUndefinedAnnotation) as error:
        raise TypeError(f"{form!r} has no JSON schema: {error}") from error


def arguments_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The JSON schema of a function's arguments, an object with a property for each of them.

    Raises:
        TypeError: An annotation has no JSON schema, or arguments cannot be given by name.
    """
    schema = schema_of(function)
    if schema.get("type") != "object":
        raise TypeError(f"{function!r} cannot be called by names: it has positional-only arguments or *args")
    return schema


def read_json(form: type[T], text: str) -> T:
    """An instance from JSON.

    Raises:
        ValueError: The text is none.
    """
    return pydantic.TypeAdapter(form).validate_json(text)
