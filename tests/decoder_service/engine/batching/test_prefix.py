"""How far two contents are the same: tokens decide, and for media their keys."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from decoder_service.engine import Span
from decoder_service.engine.batching.prefix import Content, common_prefix

IMAGE = 9
# Pieces of a content: a word, or an image of two tokens with a key.
PIECES = st.lists(st.one_of(st.integers(0, 2), st.sampled_from("abc")), max_size=8)


def content(*pieces: int | str, scope: str = "") -> Content:
    """Words are themselves; a string is an image of two tokens whose key it is."""
    ids: list[int] = []
    media = []
    for piece in pieces:
        if isinstance(piece, int):
            ids.append(piece)
        else:
            media.append(Span(len(ids), len(ids) + 2, (1, 2), piece))
            ids += [IMAGE, IMAGE]
    return Content(np.array(ids, np.int32), tuple(media), scope)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ((1, 2, 3), (1, 2, 3), 3),
        ((1, 2, 3), (1, 2), 2),
        ((1, 2, 3), (1, 4, 3), 1),
        ((), (1,), 0),
        ((1, "a", 2), (1, "a", 2), 4),
        ((1, "a", 2), (1, "b", 2), 1),  # the tokens are alike and the keys differ
        ((1, "a", "b", 5), (1, "a", "c", 5), 3),
        ((1, "", 2), (1, "", 2), 1),  # nobody knows what it is
        ((1, "a", "", 2), (1, "a", "", 2), 3),
        ((1, "a", 2), (1, IMAGE, IMAGE, 2), 1),  # drawn by the model itself, a media token is text
    ],
)
def test_common_prefix(one: tuple, other: tuple, expected: int) -> None:
    """Both ways round."""
    assert common_prefix(content(*one), content(*other)) == expected
    assert common_prefix(content(*other), content(*one)) == expected


def test_another_shape_is_another_medium() -> None:
    """Even under one key, media of other shapes share nothing: their positions differ."""
    ids = np.full(6, IMAGE, np.int32)
    assert common_prefix(Content(ids, (Span(0, 6, (2, 3), "a"),)), Content(ids, (Span(0, 6, (3, 2), "a"),))) == 0


def test_scopes_share_nothing() -> None:
    """Neither text nor media, also with an answer behind it; within a scope all as usual."""
    one, same, other = (content(1, 2, "a", scope=scope) for scope in ("s", "s", "t"))
    for theirs in (other, content(1, 2, "a"), other.followed_by([5])):
        assert common_prefix(one, theirs) == common_prefix(theirs, one) == 0
    assert common_prefix(one, same) == common_prefix(one.followed_by([5]), same.followed_by([6])) == 4


def test_an_answer_is_text() -> None:
    """What follows a prompt is text, also where it has a media token."""
    grown = content(1, "a").followed_by([IMAGE, 4])
    assert grown.token_ids.tolist() == [1, IMAGE, IMAGE, IMAGE, 4]
    assert common_prefix(grown, content(1, "a", "b")) == 3


@given(PIECES, PIECES)
def test_it_is_the_longest_common_beginning(one: list[int | str], other: list[int | str]) -> None:
    """Of any two contents it is what comparing them one token after another gives."""

    def described(pieces: list[int | str]) -> list[object]:
        out: list[object] = []
        for piece in pieces:
            out += [piece] if isinstance(piece, int) else [(piece, 0), (piece, 1)]
        return out

    expected = 0
    for mine, theirs in zip(described(one), described(other), strict=False):
        if mine != theirs:
            break
        expected += 1
    assert common_prefix(content(*one), content(*other)) == expected
