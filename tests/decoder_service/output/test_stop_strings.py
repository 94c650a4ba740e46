"""No part of a stop string is ever shown, however the text is cut."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decoder_service.output.stop_strings import StopStrings


@pytest.mark.parametrize(
    ("stops", "pieces", "shown", "hit"),
    [
        (["END"], ["abc", "def"], "abcdef", False),
        (["END"], ["abcE", "N", "Ddef"], "abc", True),
        (["END"], ["abcE", "N", "d"], "abcENd", False),
        (["END"], ["abcEN"], "abcEN", False),
        (["ab"], ["aab"], "a", True),
        (["aab"], ["aa", "aa", "b"], "aa", True),
        (["abcd", "bc"], ["abcd"], "a", True),
        (["x", "abc"], ["ab", "x"], "ab", True),
        (["\n\n"], ["one\n", "two\n", "\nthree"], "one\ntwo", True),
        (["🛑"], ["go", "🛑", "on"], "go", True),
        ([], ["any", "thing"], "anything", False),
    ],
)
def test_stop_strings(stops: list[str], pieces: list[str], shown: str, hit: bool) -> None:
    """The answer ends before the stop string that is complete first; without one nothing is missing."""
    assert run_stops(stops, pieces) == (shown, hit)


@given(
    text=st.text("ab", max_size=30),
    stops=st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
    cuts=st.lists(st.integers(0, 30)),
)
def test_stop_strings_do_not_see_how_text_is_cut(text: str, stops: list[str], cuts: list[int]) -> None:
    """The result is the same for the whole text at once, letter by letter, and in any pieces."""
    edges = sorted({0, len(text), *(cut for cut in cuts if cut <= len(text))})
    pieces = [text[a:b] for a, b in itertools.pairwise(edges)]
    whole = run_stops(stops, [text])
    assert whole == run_stops(stops, list(text)) == run_stops(stops, pieces)
    ends = [end for end in range(len(text) + 1) if any(text[:end].endswith(stop) for stop in stops)]
    assert whole[1] == bool(ends)
    if ends:
        assert any(text[: ends[0]] == whole[0] + stop for stop in stops)


def run_stops(stops: list[str], pieces: list[str]) -> tuple[str, bool]:
    """What is shown of the pieces, and whether a stop string came."""
    guard = StopStrings(stops)
    shown = ""
    for piece in pieces:
        shown += guard.push(piece)
        assert not any(stop in shown for stop in stops)
        if guard.hit:
            return shown, True
    return shown + guard.flush(), False
