"""Where the media of a prompt lie, and how its tokens and the rows of features correspond."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Span:
    """The tokens of one medium in a prompt, or of one part of it: each takes a row of features, in order.

    Attributes:
        start: Its first token.
        stop: The token after its last.
        shape: What the positions of its tokens depend on, beside their number.
        key: What names its content exactly: equal keys mean equal features. Empty: nobody knows.
    """

    start: int
    stop: int
    shape: tuple[int, ...]
    key: str = ""


def check_spans(length: int, spans: Sequence[Span], rows: int) -> None:
    """Check media against their prompt and their features.

    Args:
        length: Tokens of the prompt.
        spans: Its media.
        rows: Rows of features.

    Raises:
        ValueError: A medium is empty, out of order or outside the prompt, or there are other rows than tokens of media.
    """
    place = 0
    for span in spans:
        if not place <= span.start < span.stop <= length:
            raise ValueError(f"a medium cannot take the tokens {span.start} to {span.stop} of {length}, after {place}")
        place = span.stop
    if rows != (room := rows_before(length, spans)):
        raise ValueError(f"there are {rows} rows of features, and the prompt has room for {room}")


def rows_before(token: int, spans: Sequence[Span]) -> int:
    """How many rows of features the tokens before this one take."""
    return sum(min(max(token - span.start, 0), span.stop - span.start) for span in spans)


def readable(length: int, spans: Sequence[Span], rows: int) -> int:
    """How many tokens of a prompt, from the first on, can be read with so many rows of features.

    Args:
        length: Tokens of the prompt.
        spans: Its media.
        rows: Rows that are there, from the first on.
    """
    for span in spans:
        size = span.stop - span.start
        if rows < size:
            return span.start + rows
        rows -= size
    return length
