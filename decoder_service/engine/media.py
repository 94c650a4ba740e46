"""The spans of media in a prompt, and how its tokens correspond to feature rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Span:
    """The tokens of one medium in a prompt, or of a part of it: each takes a feature row, in order.

    Attributes:
        start: Its first token.
        stop: The token after its last.
        shape: What the positions of its tokens depend on, besides their number.
        key: Identifies its content: equal keys mean equal features. Empty: unknown.
    """

    start: int
    stop: int
    shape: tuple[int, ...]
    key: str = ""


def check_spans(length: int, spans: Sequence[Span], rows: int) -> None:
    """Check the spans against the prompt and the features.

    Args:
        length: Tokens of the prompt.
        spans: Its media.
        rows: Number of feature rows.

    Raises:
        ValueError: A span is empty, out of order or outside the prompt, or the number of rows is not that of media
            tokens.
    """
    place = 0
    for span in spans:
        if not place <= span.start < span.stop <= length:
            raise ValueError(f"a medium cannot take the tokens {span.start} to {span.stop} of {length}, after {place}")
        place = span.stop
    if rows != (room := rows_before(length, spans)):
        raise ValueError(f"there are {rows} rows of features, and the prompt has room for {room}")


def rows_before(token: int, spans: Sequence[Span]) -> int:
    """Number of feature rows that the tokens before this one take."""
    return sum(min(max(token - span.start, 0), span.stop - span.start) for span in spans)


def prefillable(length: int, spans: Sequence[Span], rows: int) -> int:
    """Number of tokens of a prompt, from the first on, that can be prefilled with the first `rows` feature rows.

    Args:
        length: Tokens of the prompt.
        spans: Its media.
        rows: Feature rows that have arrived, from the first on.
    """
    for span in spans:
        size = span.stop - span.start
        if rows < size:
            return span.start + rows
        rows -= size
    return length
