r"""Control tokens in messages stay text, and the template's result stays the same otherwise.

transformers marks control tokens in the messages before the template runs, and encodes what is marked as plain text
(`mark_control_tokens`, `sanitize_control_tokens`). But a template may search for a control token and change the text
next to it: those of models that think remove the reasoning of earlier turns with
`content.split('</think>')[-1].lstrip('\n')`. A mark after `</think>` keeps the line breaks in the prompt. So if an
assistant message has control tokens, the template is applied twice: with marks everywhere, which shows the control
tokens that the template writes itself, and without marks in the assistant messages, which gives the text of the prompt.
The second result gets its marks from the first.

User and system messages are marked both times, so that they cannot influence what the template does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

_START, _END = "\U000f0000", "\U000f0001"
"""The marks of transformers, which removes them from the input. So does this module."""

Conversation = Sequence[Mapping[str, Any]]


class ControlTokens:
    """Marks control tokens in conversations.

    Args:
        tokens: The control tokens. None of them is white space.
    """

    def __init__(self, tokens: Collection[str]) -> None:
        longest_first = sorted(tokens, key=len, reverse=True)
        any_token = "|".join(map(re.escape, longest_first)) or "(?!)"
        self._tokens = re.compile(any_token)
        self._pieces = re.compile(f"{_START}(?P<marked>{any_token}){_END}|(?P<bare>{any_token})|[{_START}{_END}]|\\s+")

    def marked(self, value: Any) -> Any:
        """JSON that a template writes beside the messages, with the control tokens in it marked."""
        return _changed(value, self._mark)

    def chat(self, conversation: Conversation, apply: Callable[[Conversation], str]) -> str:
        """Apply a template, with marks around all control tokens that it did not write itself.

        Args:
            conversation: The messages, in the form of chat templates.
            apply: Applies the template.

        Returns:
            The text, to be tokenized with `sanitize_control_tokens`.
        """
        marked = apply([_changed(message, self._mark) for message in conversation])
        answers = [message for message in conversation if message["role"] == "assistant"]
        if not any(self._tokens.search(text) for message in answers for text in _texts(message)):
            return marked
        plain = apply(
            [
                _changed(message, _without_marks if message["role"] == "assistant" else self._mark)
                for message in conversation
            ]
        )
        return self._restore(plain, marked)

    def _mark(self, text: str) -> str:
        return self._tokens.sub(f"{_START}\\g<0>{_END}", _without_marks(text))

    def _restore(self, plain: str, marked: str) -> str:
        """`plain`, with marks around all control tokens except those that have none in `marked` either.

        Positions are compared by counting the preceding characters that are neither white space nor marks. If these
        characters differ, the template did more than remove white space, and the result is `marked`.
        """
        shown = list(self._walk(marked))
        own = {(piece.at, piece.kept) for piece in shown if piece.bare}
        chat = []
        seen = []
        for piece in self._walk(plain):
            foreign = piece.bare and (piece.at, piece.kept) not in own
            chat.append(f"{_START}{piece.kept}{_END}" if foreign else piece.whole)
            seen.append(piece.kept)
        return "".join(chat) if "".join(seen) == "".join(piece.kept for piece in shown) else marked

    def _walk(self, chat: str) -> Iterator[_Piece]:
        at = end = 0
        for match in self._pieces.finditer(chat):
            between = chat[end : match.start()]
            yield _Piece(between, between, at, bare=False)
            at += len(between)
            kept = match["marked"] or match["bare"] or ""
            yield _Piece(match[0], kept, at, bare=match["bare"] is not None)
            at += len(kept)
            end = match.end()
        yield _Piece(chat[end:], chat[end:], at, bare=False)


class _Piece(NamedTuple):
    """A piece of the text: a control token, a mark, white space, or the text between these.

    Attributes:
        whole: The piece.
        kept: The piece without white space and marks.
        at: Number of kept characters before it.
        bare: Whether it is a control token without marks.
    """

    whole: str
    kept: str
    at: int
    bare: bool


def _without_marks(text: str) -> str:
    return text.replace(_START, "").replace(_END, "")


def _changed(value: Any, change: Callable[[str], str]) -> Any:
    """JSON with its strings changed, the names in objects among them."""
    match value:
        case str():
            return change(value)
        case Mapping():
            return {change(name): _changed(item, change) for name, item in value.items()}
        case list():
            return [_changed(item, change) for item in value]
    return value


def _texts(value: Any) -> list[str]:
    found: list[str] = []

    def note(text: str) -> str:
        found.append(text)
        return text

    _changed(value, note)
    return found
