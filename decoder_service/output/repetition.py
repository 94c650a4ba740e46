"""Notices an answer that runs in circles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MAX_PATTERN_SIZE = 1024
MAX_COUNT = 1000


@dataclass(frozen=True)
class RepetitionLimits:
    """When an answer runs in circles: it ends in one pattern of tokens, several times in a row.

    Attributes:
        min_size: Least tokens of a pattern, at least 1.
        max_size: Most tokens of a pattern, at least `min_size`.
        count: How many times it must have come, at least 2.
    """

    min_size: int
    max_size: int
    count: int


USUAL = RepetitionLimits(min_size=32, max_size=512, count=4)
"""What the server's setting turns on: the rows of a table that is empty, or a line of dashes, may be that long."""


class Repetition:
    """Looks at one answer, at a few microseconds for each token.

    Args:
        limits: When it runs in circles.
    """

    def __init__(self, limits: RepetitionLimits) -> None:
        size = limits.max_size
        self._size = size
        self._tokens = np.empty(2 * size, np.int64)
        self._pushed = 0  # tokens in the buffer
        # For each pattern size: how many tokens in a row have been the one that many before.
        self._equal = np.zeros(size, np.int64)
        self._needed = np.arange(1, size + 1) * (limits.count - 1)
        self._needed[: limits.min_size - 1] = np.iinfo(np.int64).max
        self.found = False
        """Whether the answer runs in circles."""

    def push(self, token_id: int) -> None:
        """One more token."""
        if self._pushed == len(self._tokens):
            self._tokens[: self._size] = self._tokens[self._size :]
            self._pushed = self._size
        known = min(self._pushed, self._size)
        before = self._tokens[self._pushed - known : self._pushed][::-1]
        self._equal[:known] = np.where(before == token_id, self._equal[:known] + 1, 0)
        self._tokens[self._pushed] = token_id
        self._pushed += 1
        self.found = bool((self._equal >= self._needed).any())
