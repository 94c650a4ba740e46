"""The tools of a request: how a chat template takes them, and what they mean for the form of the answer."""

from __future__ import annotations

import enum
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from decoder_service.output.constraint import Form
from decoder_service.output.tool_grammar import ToolSchema, calls_or, may_call, must_call


@dataclass(frozen=True)
class Tool:
    """A function that the model may call.

    Attributes:
        name: Its name.
        description: For the model.
        parameters: JSON schema of its arguments, as text; empty: none.
        strict: Whether the arguments must keep the schema.
    """

    name: str
    description: str = ""
    parameters: str = ""
    strict: bool = False

    def definition(self) -> dict[str, Any]:
        """The definition in the form of chat templates, which is OpenAI's. Keys keep the client's order."""
        function: dict[str, Any] = {"name": self.name}
        if self.description:
            function["description"] = self.description
        if self.parameters:
            function["parameters"] = json.loads(self.parameters)
        return {"type": "function", "function": function}

    @property
    def schema(self) -> ToolSchema:
        """What a call of it may be."""
        return ToolSchema(self.name, self.parameters, self.strict)


class Choice(enum.Enum):
    """Whether the model calls tools."""

    AUTO = "auto"
    NONE = "none"
    REQUIRED = "required"


@dataclass(frozen=True)
class Tools:
    """The tools of a request.

    Attributes:
        tools: All of them.
        choice: Whether the model calls them.
        only: The one that must be called, if it is named.
        one_call: Whether the answer has one call at most.
    """

    tools: tuple[Tool, ...] = ()
    choice: Choice = Choice.AUTO
    only: str = ""
    one_call: bool = False

    @property
    def offered(self) -> tuple[Tool, ...]:
        """The tools that the prompt defines."""
        return () if self.choice is Choice.NONE else self.tools

    def definitions(self) -> list[dict[str, Any]]:
        """The offered tools in the form of chat templates."""
        return [tool.definition() for tool in self.offered]

    def form(self, asked: Form | None) -> Form | None:
        """The form of the answer.

        Args:
            asked: The form of an answer that calls no tool; None: any text.

        Raises:
            ValueError: The tools are optional, and the form is not JSON: the two cannot be joined.
        """
        if not self.offered:
            return asked
        if self.choice is Choice.REQUIRED:
            return must_call(self._callable(), one=self.one_call)
        if asked is None:
            return may_call(self._callable())
        if asked.kind != "json_schema":
            raise ValueError(f"cannot be {asked.kind} where the model may call tools; use json_schema")
        return calls_or(self._callable(), asked.text, one=self.one_call)

    def _callable(self) -> Sequence[ToolSchema]:
        return [tool.schema for tool in self.offered if self.only in ("", tool.name)]
