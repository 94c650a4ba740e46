"""Circles are found at their first token too many, whatever came before, and nothing else is."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decoder_service.output.repetition import USUAL, Repetition, RepetitionLimits
from decoder_service.settings import DecoderSettings


def length(tokens: Iterable[int], limits: RepetitionLimits, most: int = 20_000) -> int | None:
    """How many tokens have come when the circle is found; None where none is."""
    repetition = Repetition(limits)
    for number, token in enumerate(itertools.islice(tokens, most), start=1):
        repetition.push(token)
        if repetition.found:
            return number
    return None


def circles(tokens: list[int], limits: RepetitionLimits) -> bool:
    """By the definition: whether the tokens end in one pattern, often enough."""
    for size in range(limits.min_size, limits.max_size + 1):
        end = tokens[-size * limits.count :]
        if len(end) == size * limits.count and end == end[:size] * limits.count:
            return True
    return False


@given(
    tokens=st.lists(st.integers(0, 2), max_size=60),
    sizes=st.tuples(st.integers(1, 6), st.integers(1, 6)).map(sorted),
    count=st.integers(2, 5),
)
def test_it_is_what_is_defined(tokens: list[int], sizes: list[int], count: int) -> None:
    """At every token, as if the whole answer were looked at."""
    limits = RepetitionLimits(*sizes, count)
    repetition = Repetition(limits)
    for end, token in enumerate(tokens, start=1):
        repetition.push(token)
        assert repetition.found == circles(tokens[:end], limits)


@pytest.mark.parametrize("size", [1, 2, 7, 64])
def test_an_endless_answer_is_ended(size: int) -> None:
    """Behind an ordinary beginning, longer than what is remembered."""
    limits = RepetitionLimits(1, 64, 3)
    beginning = [1000 + number * number for number in range(500)]
    assert length([*beginning, *list(range(size)) * 5], limits) == 500 + 3 * size


def test_a_pattern_that_is_too_long_is_no_circle() -> None:
    """Nor is one that comes too seldom."""
    limits = RepetitionLimits(1, 8, 3)
    assert length(itertools.cycle(range(9)), limits) is None
    assert length([*range(8), *range(8), 0, 1], limits) is None


def test_equal_tokens_are_a_circle_of_the_least_size() -> None:
    """So short patterns may come more often than long ones."""
    assert length(itertools.repeat(5), RepetitionLimits(16, 64, 4)) == 64
    assert length(itertools.cycle((5, 6, 7)), RepetitionLimits(16, 64, 4)) == 18 * 4


def test_what_a_server_turns_on_leaves_tables_alone() -> None:
    """An empty table of twenty rows is an answer; one without end is not."""
    numbers = (str(USUAL.min_size), str(USUAL.max_size), str(USUAL.count))
    described = DecoderSettings.model_fields["repetition_detection"].description or ""
    assert all(number in described.split() for number in numbers)
    row = [7, 8, 7, 8, 7, 9]
    assert length(row * 20, USUAL) is None
    assert length(itertools.cycle(row), USUAL) is not None
