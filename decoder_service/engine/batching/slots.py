"""Who lies in which row of the keys and values, and how much memory they may take.

A running request has a slot whose memory is counted in full from the beginning: prompt and longest answer. So no
request ever finds the memory gone in the middle of its answer. What a finished one leaves stays in its row as a cache,
counted as it is, until the row or the memory is needed: the least recently used goes first.

Rows of a decode step must lie side by side. Requests come and go, so now and then one is moved; that reads and writes
its keys and values about twice, where each of its steps reads them once.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from decoder_service.engine.batching.prefix import Content, common_prefix

# Shorter matches save less than looking at them is worth: every chat prompt begins alike.
SHORTEST_MATCH = 16


class Memory(Protocol):
    """What the slots do with keys and values; see `KvCache`."""

    granule: int

    def copy(self, source: int, target: int, count: int) -> None:
        """Copy the first `count` tokens of one row into another."""

    def swap(self, one: int, other: int, *, lengths: tuple[int, int]) -> None:
        """Exchange two rows, of which the first has `lengths[0]` tokens and the second `lengths[1]`."""

    def release(self, row: int, start: int = 0) -> None:
        """Give back the memory of a row's tokens from `start` on."""


@dataclass(eq=False)
class Slot:
    """A row and what is in it.

    Attributes:
        row: Which row; changes when it is moved.
        content: What it stands for, as far as it is known: a running request's prompt, a finished one's whole text.
        length: Tokens of it that are computed. Only `Slots` changes it.
        reserved: Tokens that may come to lie in it, while it runs; 0 when it is a cache.
        used: When it was of use last.
    """

    row: int
    content: Content
    length: int
    reserved: int
    used: int


class Slots:
    """All rows.

    Args:
        memory: The keys and values.
        rows: How many there are.
        running: How many requests may run at once, at most `rows`.
        budget: Tokens that may lie in all rows together.
        caching: Whether what finished requests leave is kept.
    """

    def __init__(self, memory: Memory, *, rows: int, running: int, budget: int, caching: bool) -> None:
        self._memory = memory
        self._rows: list[Slot | None] = [None] * rows
        self._most_running = running
        self._budget = budget
        self._caching = caching
        self._clock = itertools.count()

    @property
    def running(self) -> list[Slot]:
        """The slots of running requests, by row."""
        return [slot for slot in self._rows if slot is not None and slot.reserved]

    @property
    def free(self) -> int:
        """How many requests more may run, memory permitting."""
        return self._most_running - len(self.running)

    @property
    def caches(self) -> list[Slot]:
        """What finished requests left, least recently used first."""
        kept = [slot for slot in self._rows if slot is not None and not slot.reserved]
        return sorted(kept, key=lambda slot: slot.used)

    def fits(self, need: int, *, without: Collection[Slot] = ()) -> bool:
        """Whether a request of so many tokens can run now, or could if these running ones were gone."""
        running = [slot for slot in self.running if slot not in without]
        taken = sum(self._whole(slot.reserved) for slot in running)
        return len(running) < self._most_running and taken + self._whole(need) <= self._budget

    def take(self, prompt: Content, need: int) -> Slot | None:
        """Give a request a slot, and in it whatever of its prompt is computed already.

        Args:
            prompt: Its prompt.
            need: Tokens of the prompt and of the longest answer.

        Returns:
            The slot, of whose prompt `length` tokens are computed, all but one at most; None while there is no room.
        """
        if not self.fits(need):
            return None
        source, match = self._longest_match(prompt)
        return self._beside(source, match, prompt, need) or self._instead_of(source, match, prompt, need)

    def extend(self, slot: Slot, count: int) -> None:
        """So many tokens more of a running request are computed."""
        slot.length += count

    def finish(self, slot: Slot, content: Content | None) -> None:
        """A request is over.

        Args:
            slot: Its slot.
            content: What its computed tokens are; None where they are good for nothing.
        """
        slot.reserved = 0
        useful = min(slot.length, content.comparable) if content is not None and self._caching else 0
        if content is None or useful < SHORTEST_MATCH:
            self._drop(slot)
            return
        if useful < slot.length:
            self._memory.release(slot.row, useful)
        slot.content, slot.length, slot.used = content, useful, next(self._clock)

    def side_by_side(self, slots: Sequence[Slot]) -> int:
        """Bring slots into neighbouring rows, by moving as little as possible.

        Returns:
            The first row.
        """
        size = len(slots)
        rows = [slot.row for slot in slots]
        if max(rows) - min(rows) + 1 == size:
            return min(rows)
        wanted = set(map(id, slots))

        def to_move(first: int) -> int:
            inside = self._rows[first : first + size]
            strangers = sum(slot.length for slot in inside if slot is not None and id(slot) not in wanted)
            return strangers + sum(slot.length for slot in slots if not first <= slot.row < first + size)

        first = min(range(len(self._rows) - size + 1), key=to_move)
        places = [row for row in range(first, first + size) if id(self._rows[row]) not in wanted]
        outside = [slot for slot in slots if not first <= slot.row < first + size]
        for slot, row in zip(outside, places, strict=True):
            self._move(slot, row)
        return first

    def _longest_match(self, prompt: Content) -> tuple[Slot | None, int]:
        best: Slot | None = None
        match = 0
        if self._caching:
            for slot in (*self.running, *self.caches):
                # The last token is always computed: its logits are wanted.
                common = min(common_prefix(slot.content, prompt), slot.length, len(prompt) - 1)
                if common >= max(match, SHORTEST_MATCH):
                    best, match = slot, common
        return best, match

    def _beside(self, source: Slot | None, match: int, prompt: Content, need: int) -> Slot | None:
        """A row of its own, with a copy of what matches; None where only the source's own row is to be had."""
        if source is not None and not source.reserved and match == source.length:
            return None  # all of it is wanted, so nothing is lost by going on where it lies
        for cache in self.caches:
            if self._room(need) and None in self._rows:
                break
            if cache is not source:
                self._drop(cache)
        if not self._room(need) or None not in self._rows:
            return None
        row = self._free_row()
        if source is not None:
            source.used = next(self._clock)
            self._memory.copy(source.row, row, match)
        slot = Slot(row, prompt, match, need, next(self._clock))
        self._rows[row] = slot
        return slot

    def _instead_of(self, source: Slot | None, match: int, prompt: Content, need: int) -> Slot:
        """The source's own row, of which what does not match is given up."""
        assert source is not None and not source.reserved  # noqa: S101, PT018  # else there was a row, or memory, left
        if source.length > match:
            self._memory.release(source.row, match)
        source.content, source.length, source.reserved, source.used = prompt, match, need, next(self._clock)
        for cache in self.caches:
            if self._taken() <= self._budget:
                break
            self._drop(cache)
        return source

    def _taken(self) -> int:
        return sum(self._whole(slot.reserved or slot.length) for slot in self._rows if slot is not None)

    def _room(self, need: int) -> bool:
        return self._taken() + self._whole(need) <= self._budget

    def _whole(self, tokens: int) -> int:
        """As memory is taken."""
        return -(-tokens // self._memory.granule) * self._memory.granule

    def _free_row(self) -> int:
        """The free row that is nearest to a running one."""
        busy = [slot.row for slot in self.running] or [0]
        free = [row for row, slot in enumerate(self._rows) if slot is None]
        return min(free, key=lambda row: min(abs(row - other) for other in busy))

    def _drop(self, slot: Slot) -> None:
        self._memory.release(slot.row)
        self._rows[slot.row] = None

    def _move(self, slot: Slot, row: int) -> None:
        other, old = self._rows[row], slot.row
        self._memory.swap(old, row, lengths=(slot.length, other.length if other is not None else 0))
        self._rows[row], self._rows[old] = slot, other
        slot.row = row
        if other is not None:
            other.row = old
