"""Separates tool calls from the text of an answer. Qwen's chat templates ask for them in Hermes style.

    <tool_call>
    {"name": "look_up", "arguments": {"word": "sea"}}
    </tool_call>

The arguments are streamed as they are drawn. A call that is not written like this is read as a whole when it ends; one
that is no JSON stays text, so that nothing of the answer is lost.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from decoder_service.output.stop_strings import beginning

OPENING, CLOSING = "<tool_call>", "</tool_call>"

# What precedes the arguments, if they are an object and come last.
_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*(?=\{)')


@dataclass(frozen=True)
class ToolCallDelta:
    """More of a tool call.

    Attributes:
        index: Which call of this answer, from 0.
        id: Set on the first delta of a call.
        name: Set on the first delta of a call.
        arguments: More of the JSON text of the arguments.
        choice: Number of the answer.
    """

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""
    choice: int = 0


def _new_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"


class ToolCalls:
    """The parser of one answer.

    Args:
        one: Whether the answer ends with its first call.
        must: Whether the answer is calls and nothing else: a call that is cut off early is then no text.
        new_id: Makes the id of a call.
    """

    def __init__(self, *, one: bool = False, must: bool = False, new_id: Callable[[], str] = _new_id) -> None:
        self._one = one
        self._must = must
        self._new_id = new_id
        self._read: Callable[[], Iterator[str | ToolCallDelta]] = self._text
        self._held = ""
        self._blank = ""  # before the call that is being read
        self._arguments = _Braces()
        self.count = 0
        """Calls so far."""
        self.over = False
        """Whether the one call that is allowed is complete. Nothing may be pushed after."""

    def push(self, text: str) -> Iterator[str | ToolCallDelta]:
        """Text of the answer that is no part of a call, and parts of calls, in order."""
        self._held += text
        while not self.over:
            reading = self._read
            yield from reading()
            if self._read == reading:
                return

    def flush(self) -> Iterator[str | ToolCallDelta]:
        """What was held back, after the last token."""
        held, self._held = self._held, ""
        if self._must and self._read != self._streamed:
            return
        if self._read == self._text:
            if held and not (self.count and held.isspace()):
                yield held
        elif self._read == self._head:
            yield from self._whole(held, f"{self._blank}{OPENING}{held}")
        elif self._read == self._streamed:
            yield ToolCallDelta(self.count - 1, arguments=held)

    def _text(self) -> Iterator[str | ToolCallDelta]:
        before, found, rest = self._held.partition(OPENING)
        if found:
            # The template writes the line break before a call, and between two.
            text = before.rstrip()
            if text:
                yield text
            self._blank = before[len(text) :]
            self._held, self._read = rest, self._head
            return
        keep = beginning(self._held, OPENING)
        settled = self._held[: len(self._held) - keep].rstrip()
        if settled:
            yield settled
            self._held = self._held[len(settled) :]

    def _head(self) -> Iterator[str | ToolCallDelta]:
        inside, closed, rest = self._held.partition(CLOSING)
        head = _HEAD.match(inside)
        if head is not None:
            yield self._begin(json.loads(head[1], strict=False))
            self._held, self._arguments, self._read = self._held[head.end() :], _Braces(), self._streamed
        elif closed:
            yield from self._whole(inside, f"{self._blank}{OPENING}{inside}{CLOSING}")
            self._end(rest)

    def _streamed(self) -> Iterator[str | ToolCallDelta]:
        inside, closed, rest = self._held.partition(CLOSING)
        settled = inside if closed else inside[: len(inside) - beginning(inside, CLOSING)]
        arguments = settled[: self._arguments.end(settled)]
        if arguments:
            yield ToolCallDelta(self.count - 1, arguments=arguments)
        self._held = self._held[len(arguments) :]
        if self._arguments.closed:
            self._read = self._tail
        elif closed:  # the arguments are broken off
            self._end(rest)

    def _tail(self) -> Iterator[str | ToolCallDelta]:
        _, closed, rest = self._held.partition(CLOSING)
        if closed:
            self._end(rest)
        yield from ()

    def _whole(self, inside: str, raw: str) -> Iterator[str | ToolCallDelta]:
        """A call that could not be streamed, or the text that it is if it is none."""
        call = _call(inside)
        if call is None:
            yield raw
            return
        name, arguments = call
        first = self._begin(name)
        yield ToolCallDelta(first.index, first.id, first.name, arguments)

    def _begin(self, name: str) -> ToolCallDelta:
        self.count += 1
        return ToolCallDelta(self.count - 1, self._new_id(), name)

    def _end(self, rest: str) -> None:
        self._held, self._read = rest, self._text
        self.over = self._one and self.count > 0


class _Braces:
    """Finds the end of a JSON object that comes in pieces."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = self._escaped = False
        self.closed = False

    def end(self, text: str) -> int:
        """How many characters of `text` belong to the object."""
        for at, letter in enumerate(text):
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif letter == "\\":
                    self._escaped = True
                elif letter == '"':
                    self._in_string = False
            elif letter == '"':
                self._in_string = True
            elif letter in "{[":
                self._depth += 1
            elif letter in "}]":
                self._depth -= 1
                if self._depth == 0:
                    self.closed = True
                    return at + 1
        return len(text)


def _call(text: str) -> tuple[str, str] | None:
    """Name and arguments of a call as other models write it, or None."""
    try:
        value: Any = json.loads(text, strict=False)
    except ValueError:
        return None
    if not isinstance(value, dict) or not isinstance(name := value.get("name"), str) or not name:
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    return name, arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
