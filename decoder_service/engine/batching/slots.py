"""Who lies in which row of the keys and values, and how much memory they may take.

A running request has a slot whose memory is counted in steps: its prompt and a first step from the beginning, and one
step more whenever its answer has filled the last one. What a finished request leaves stays in its row as a cache,
counted as it is, until the row or the memory is needed: the least recently used goes first. When no cache is left, a
running request can be parked: its keys and values are copied out of the rows, into memory that has a bound of its own,
and come back later bit for bit.

Rows of a decode step must lie side by side. Requests come and go, so now and then one is moved; that reads and writes
its keys and values about twice, where each of its steps reads them once.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from decoder_service.engine.batching.prefix import Content, common_prefix

# Shorter matches save less than looking at them is worth: every chat prompt begins alike.
SHORTEST_MATCH = 16

GROWTH = 256
"""Tokens in a step of memory: a small part of a long answer, and seconds of writing."""


class Memory(Protocol):
    """What the slots do with keys and values; see `KvCache`."""

    granule: int

    def copy(self, source: int, target: int, count: int) -> None:
        """Copy the first `count` tokens of one row into another."""

    def save(self, row: int, count: int) -> Any:
        """Copy the first `count` tokens of a row out of the rows. Raises MemoryError."""

    def restore(self, saved: Any, row: int) -> None:
        """Copy into a row what was saved."""

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
        reserved: Tokens that memory is counted for, while it runs; 0 when it is a cache.
        used: When it was of use last.
    """

    row: int
    content: Content
    length: int
    reserved: int
    used: int


@dataclass(frozen=True, eq=False)
class Parked:
    """What is left of a running request that has given its slot up for a while.

    Attributes:
        content: What its slot stood for.
        length: Tokens of it that were computed.
        saved: Their keys and values; None where there was no memory for them: they are to be computed again.
    """

    content: Content
    length: int
    saved: Any


class Slots:
    """All rows.

    Args:
        memory: The keys and values.
        rows: How many there are.
        running: How many requests may run at once, at most `rows`.
        budget: Tokens that may lie in all rows together.
        caching: Whether what finished requests leave is kept.
        parking: Tokens that may be saved outside the rows, of all parked requests together.
        growth: Tokens in a step of memory.
    """

    def __init__(
        self,
        memory: Memory,
        *,
        rows: int,
        running: int,
        budget: int,
        caching: bool,
        parking: int = 0,
        growth: int = GROWTH,
    ) -> None:
        self._memory = memory
        self._rows: list[Slot | None] = [None] * rows
        self._most_running = running
        self._budget = budget
        self._caching = caching
        self._parking = parking
        self._growth = growth
        self._saved = 0  # tokens outside the rows
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

    def fits(self, length: int, need: int, *, without: Collection[Slot] = ()) -> bool:
        """Whether a request can run now, or could if these running ones were gone.

        Args:
            length: Tokens that it has: those of its prompt, or more where it was parked.
            need: Tokens of its prompt and of the longest answer.
            without: Slots of running requests.
        """
        running = [slot for slot in self.running if slot not in without]
        taken = sum(self._whole(slot.reserved) for slot in running)
        return len(running) < self._most_running and taken + self._whole(self._step(length, need)) <= self._budget

    def take(self, prompt: Content, need: int) -> Slot | None:
        """Give a request a slot, and in it whatever of its prompt is computed already.

        Args:
            prompt: Its prompt.
            need: Tokens of the prompt and of the longest answer.

        Returns:
            The slot, of whose prompt `length` tokens are computed, all but one at most; None while there is no room.
        """
        if not self.fits(len(prompt), need):
            return None
        source, match = self._longest_match(prompt)
        reserve = self._step(len(prompt), need)
        return self._beside(source, match, prompt, reserve) or self._instead_of(source, match, prompt, reserve)

    def grow(self, slot: Slot, need: int) -> bool:
        """Reserve a step more for a running request that has filled its memory, or as much as there is of it.

        Caches give way.

        Args:
            slot: Its slot.
            need: Tokens of its prompt and of the longest answer.

        Returns:
            Whether there is room for one token at least.
        """
        wanted = self._step(slot.length, need)
        others = self._taken() - self._whole(slot.reserved)
        for cache in self.caches:
            if others + self._whole(wanted) <= self._budget:
                break
            others -= self._whole(cache.length)
            self._drop(cache)
        granted = min(wanted, (self._budget - others) // self._memory.granule * self._memory.granule)
        if granted <= slot.length:
            return False
        slot.reserved = max(granted, slot.reserved)
        return True

    def park(self, slot: Slot) -> Parked:
        """Copy what is computed of a running request out of its slot, if there is memory for it, and free the slot."""
        saved = None
        if self._saved + slot.length <= self._parking:
            try:
                saved = self._memory.save(slot.row, slot.length)
            except MemoryError:
                pass
            else:
                self._saved += slot.length
        self._drop(slot)
        slot.reserved = 0
        return Parked(slot.content, slot.length, saved)

    def resume(self, parked: Parked, length: int, need: int) -> Slot | None:
        """Give a parked request a slot again, and in it what was saved. Caches give way.

        What was not saved is not looked for in the caches either: the request goes on from the same bits only where all
        of it is computed as it was.

        Args:
            parked: What is left of it.
            length: Tokens that it had.
            need: Tokens of its prompt and of the longest answer.

        Returns:
            The slot, of which `parked.length` tokens are computed, or none; None while there is no room.
        """
        if not self.fits(length, need):
            return None
        slot = self._beside(None, 0, parked.content, self._step(length, need))
        assert slot is not None  # noqa: S101  # without a source every cache gives way
        if parked.saved is not None:
            self._memory.restore(parked.saved, slot.row)
            slot.length = parked.length
            self.forget(parked)
        return slot

    def forget(self, parked: Parked) -> None:
        """What was saved of a request is not needed any more."""
        if parked.saved is not None:
            self._saved -= parked.length

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

    def _beside(self, source: Slot | None, match: int, prompt: Content, reserve: int) -> Slot | None:
        """A row of its own, with a copy of what matches; None where only the source's own row is to be had."""
        if source is not None and not source.reserved and match == source.length:
            return None  # all of it is wanted, so nothing is lost by going on where it lies
        for cache in self.caches:
            if self._room(reserve) and None in self._rows:
                break
            if cache is not source:
                self._drop(cache)
        if not self._room(reserve) or None not in self._rows:
            return None
        row = self._free_row()
        if source is not None:
            source.used = next(self._clock)
            self._memory.copy(source.row, row, match)
        slot = Slot(row, prompt, match, reserve, next(self._clock))
        self._rows[row] = slot
        return slot

    def _instead_of(self, source: Slot | None, match: int, prompt: Content, reserve: int) -> Slot:
        """The source's own row, of which what does not match is given up."""
        assert source is not None and not source.reserved  # noqa: S101, PT018  # else there was a row, or memory, left
        if source.length > match:
            self._memory.release(source.row, match)
        source.content, source.length, source.reserved, source.used = prompt, match, reserve, next(self._clock)
        for cache in self.caches:
            if self._taken() <= self._budget:
                break
            self._drop(cache)
        return source

    def _step(self, length: int, need: int) -> int:
        """Tokens to reserve for a request that has so many: never more than it may need, nor than there are."""
        return min(
            need, length + self._growth, max(self._budget // self._memory.granule * self._memory.granule, length)
        )

    def _taken(self) -> int:
        return sum(self._whole(slot.reserved or slot.length) for slot in self._rows if slot is not None)

    def _room(self, reserve: int) -> bool:
        return self._taken() + self._whole(reserve) <= self._budget

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
