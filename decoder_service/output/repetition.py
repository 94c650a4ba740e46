"""Detects an answer that repeats itself."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MAX_PATTERN_SIZE = 1024
MAX_COUNT = 1000


@dataclass(frozen=True)
class RepetitionLimits:
    """A repetition: the answer ends with one pattern of tokens, several times in a row.

    Attributes:
        min_size: Fewest tokens of a pattern, at least 1.
        max_size: Most tokens of a pattern, at least `min_size`.
        count: How often the pattern must occur, at least 2.
    """

    min_size: int
    max_size: int
    count: int


USUAL = RepetitionLimits(min_size=32, max_size=512, count=4)
"""Used by the server's setting. Shorter repetitions occur in good answers, such as an empty table."""


class Repetition:
    """Detects a repetition in one answer, in a few microseconds per token.

    Args:
        limits: What a repetition is.
    """

    def __init__(self, limits: RepetitionLimits) -> None:
        size = limits.max_size
        self._size = size
        self._tokens = np.empty(2 * size, np.int64)
        self._pushed = 0  # tokens in the buffer
        # For each pattern size: how many tokens in a row were equal to the token that many positions before.
        self._equal = np.zeros(size, np.int64)
        self._needed = np.arange(1, size + 1) * (limits.count - 1)
        self._needed[: limits.min_size - 1] = np.iinfo(np.int64).max
        self.found = False
        """Whether the answer ends with a repetition."""

    def push(self, token_id: int) -> None:
        """Add a token."""
        if self._pushed == len(self._tokens):
            self._tokens[: self._size] = self._tokens[self._size :]
            self._pushed = self._size
        known = min(self._pushed, self._size)
        before = self._tokens[self._pushed - known : self._pushed][::-1]
        self._equal[:known] = np.where(before == token_id, self._equal[:known] + 1, 0)
        self._tokens[self._pushed] = token_id
        self._pushed += 1
        self.found = bool((self._equal >= self._needed).any())
