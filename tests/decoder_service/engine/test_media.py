"""Media in a prompt: which tokens are theirs, and how far features reach."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decoder_service.engine import Span
from decoder_service.engine.media import check_spans, prefillable, rows_before

LAYOUTS = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4)), max_size=5)
"""For each medium, the text before it and its tokens."""


def lay_out(layout: list[tuple[int, int]], tail: int) -> tuple[list[bool], tuple[Span, ...]]:
    """Which tokens are media's, and the media."""
    is_media: list[bool] = []
    spans = []
    for text, tokens in layout:
        is_media += [False] * text
        spans.append(Span(len(is_media), len(is_media) + tokens, (tokens,)))
        is_media += [True] * tokens
    return is_media + [False] * tail, tuple(spans)


@given(LAYOUTS, st.integers(0, 3))
def test_rows_are_counted_as_one_token_after_another_gives_them(layout: list[tuple[int, int]], tail: int) -> None:
    """Rows before each token, and tokens that can be read with so many rows."""
    is_media, spans = lay_out(layout, tail)
    rows = sum(is_media)
    check_spans(len(is_media), spans, rows)
    before = [sum(is_media[:token]) for token in range(len(is_media) + 1)]
    assert [rows_before(token, spans) for token in range(len(is_media) + 1)] == before
    for have in range(rows + 1):
        expected = max(token for token, needed in enumerate(before) if needed <= have)
        assert prefillable(len(is_media), spans, have) == expected


@pytest.mark.parametrize(
    ("spans", "rows"),
    [
        ((Span(1, 3, ()),), 1),  # a row too few
        ((Span(1, 3, ()),), 3),  # a row too many
        ((), 1),  # for nothing
        ((Span(1, 1, ()),), 0),  # empty
        ((Span(3, 5, ()), Span(1, 3, ())), 4),  # out of order
        ((Span(1, 3, ()), Span(2, 4, ())), 4),  # one in another
        ((Span(4, 6, ()),), 2),  # beyond the prompt
        ((Span(-1, 1, ()),), 2),  # before it
    ],
)
def test_what_does_not_fit_is_refused(spans: tuple[Span, ...], rows: int) -> None:
    """Of five tokens."""
    with pytest.raises(ValueError, match=r"rows|medium"):
        check_spans(5, spans, rows)
