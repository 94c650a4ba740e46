"""Splits an answer into reasoning and content.

A model that thinks writes its reasoning first, between two marks: `<think>`, which the chat template may have written
already, and `</think>`. If a mark is one token of the vocabulary, that token is the mark, and the same letters in other
tokens are text: this is how a model quotes user text. Otherwise the mark is found in the text.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import NamedTuple

from tokenizers import Tokenizer

from decoder_service.output.stop_strings import beginning

OPENING = "<think>"
CLOSING = "</think>"


@dataclass(frozen=True)
class Marks:
    """Token ids of the marks; None for a mark that is not in the vocabulary, and so is text of several tokens."""

    opening: int | None
    closing: int | None

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Marks:
        """The marks of a tokenizer."""
        return cls(tokenizer.token_to_id(OPENING), tokenizer.token_to_id(CLOSING))


class Split(NamedTuple):
    """Text of an answer: reasoning, and content."""

    reasoning: str
    content: str


class _Stage(enum.Enum):
    BEFORE = enum.auto()
    """Only white space so far: the answer may begin with the reasoning."""
    INSIDE = enum.auto()
    AFTER = enum.auto()
    """All that follows is content, marks included."""


class Reasoning:
    """Splits one answer. The result does not depend on how the text is cut into pieces.

    Line breaks next to a mark are removed, as chat templates do.

    Args:
        marks: Token ids of the marks.
        opened: Whether the prompt ends inside the reasoning.
    """

    def __init__(self, marks: Marks, *, opened: bool) -> None:
        self._marks = marks
        self._stage = _Stage.INSIDE if opened else _Stage.BEFORE
        self._held = ""
        self._trimming = True  # line breaks at the beginning of the reasoning or of the content
        self.opened = opened
        """Whether there is any reasoning."""

    @property
    def over(self) -> bool:
        """Whether all that follows is content."""
        return self._stage is _Stage.AFTER

    def is_mark(self, token_id: int) -> bool:
        """Whether this token, if it comes next, is a mark and not text."""
        if self._stage is _Stage.BEFORE:
            return token_id == self._marks.opening
        return self._stage is _Stage.INSIDE and token_id == self._marks.closing

    def mark(self) -> Split:
        """Add a token that is a mark, and return the text that can be sent."""
        match self._stage:
            case _Stage.BEFORE:
                return self._open("")
            case _Stage.INSIDE:
                return self._close(self._held, "")
            case _Stage.AFTER:  # an incomplete character preceded it
                return Split("", "")

    def push(self, text: str) -> Split:
        """Add text, and return the text that can be sent."""
        text, self._held = self._held + text, ""
        match self._stage:
            case _Stage.BEFORE:
                return self._before(text)
            case _Stage.INSIDE:
                return self._inside(text)
            case _Stage.AFTER:
                return Split("", self._trimmed(text))

    def flush(self) -> Split:
        """The withheld text at the end."""
        held, self._held = self._held, ""
        return Split(held.rstrip("\n"), "") if self._stage is _Stage.INSIDE else Split("", held)

    def _before(self, text: str) -> Split:
        begun = text.lstrip()
        if self._marks.opening is None:
            if begun.startswith(OPENING):
                return self._open(begun.removeprefix(OPENING))
            if OPENING.startswith(begun):
                self._held = text
                return Split("", "")
        elif not begun:
            self._held = text
            return Split("", "")
        self._stage, self._trimming = _Stage.AFTER, False
        return Split("", text)

    def _open(self, rest: str) -> Split:
        self._stage, self._held, self.opened = _Stage.INSIDE, "", True
        return self.push(rest)

    def _inside(self, text: str) -> Split:
        unsure = 0
        if self._marks.closing is None:
            reasoning, mark, rest = text.partition(CLOSING)
            if mark:
                return self._close(reasoning, rest)
            unsure = beginning(text, CLOSING)
        sure = text[: len(text) - unsure].rstrip("\n")
        self._held = text[len(sure) :]
        if self._trimming and not sure:  # line breaks at the beginning are never sent
            self._held = self._held.lstrip("\n")
        return Split(self._trimmed(sure), "")

    def _close(self, reasoning: str, rest: str) -> Split:
        told = self._trimmed(reasoning.rstrip("\n"))
        self._stage, self._held, self._trimming = _Stage.AFTER, "", True
        return Split(told, self._trimmed(rest))

    def _trimmed(self, text: str) -> str:
        if self._trimming:
            text = text.lstrip("\n")
            self._trimming = not text
        return text
