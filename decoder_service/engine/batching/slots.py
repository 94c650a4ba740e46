"""KV-cache slot allocation, the prefix cache, and the memory budget of both.

The memory of a running request is reserved in steps: for the prompt and a first step at its start, and for one step
more each time its answer has filled the last one. The keys and values of a finished request stay in its slot as a
prefix cache, counted by their length, until the slot or the memory is needed: the least recently used is freed first.
When no prefix cache is left, a running request can be parked: its keys and values are copied out of the KV cache, to
memory with a limit of its own, and are copied back later bit for bit.

The slots of a decode step must be adjacent. Requests start and end, so sometimes a slot is moved; that reads and writes
its keys and values about twice, while each decode step reads them once.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from decoder_service.engine.batching.prefix import Content, common_prefix

# Shorter matches are not worth a copy: all chat prompts start with the same tokens.
SHORTEST_MATCH = 16

GROWTH = 256
"""Tokens in a step of memory: a small part of a long answer, and seconds of decoding."""


class Memory(Protocol):
    """The operations on keys and values that slots need; see `KvCache`."""

    granule: int

    def copy(self, source: int, target: int, count: int) -> None:
        """Copy the first `count` tokens of one slot to another."""

    def save(self, slot: int, count: int) -> Any:
        """Return a copy of the first `count` tokens of a slot. Raises MemoryError."""

    def restore(self, saved: Any, slot: int) -> None:
        """Copy saved tokens to a slot."""

    def swap(self, one: int, other: int, *, lengths: tuple[int, int]) -> None:
        """Exchange two slots, which hold `lengths[0]` and `lengths[1]` tokens."""

    def release(self, slot: int, start: int = 0) -> None:
        """Free the memory of a slot's tokens from `start` on."""


@dataclass(eq=False)
class Slot:
    """A slot of the KV cache in use: by a running request, or as a prefix cache.

    Attributes:
        index: Index in the KV cache; changes when the slot is moved.
        content: Its known content: the prompt of a running request, the whole text of a finished one.
        length: Number of computed tokens. Only `Slots` changes it.
        reserved: Tokens of the running request that memory is reserved for; 0 for a prefix cache.
        used: Logical time of the last use.
    """

    index: int
    content: Content
    length: int
    reserved: int
    used: int


@dataclass(frozen=True, eq=False)
class Parked:
    """The state of a request that is parked.

    Attributes:
        content: The content of its slot.
        length: Number of computed tokens.
        saved: Their keys and values; None if there was no memory for them, so that they must be computed again.
    """

    content: Content
    length: int
    saved: Any


class Slots:
    """All slots.

    Args:
        memory: The keys and values.
        slots: Number of slots.
        running: Most requests that run at once, at most `slots`.
        budget: Most tokens in all slots together.
        caching: Whether finished requests are kept as prefix caches.
        parking: Most tokens of parked requests that are kept outside the slots.
        growth: Tokens in a step of memory.
    """

    def __init__(
        self,
        memory: Memory,
        *,
        slots: int,
        running: int,
        budget: int,
        caching: bool,
        parking: int = 0,
        growth: int = GROWTH,
    ) -> None:
        self._memory = memory
        self._slots: list[Slot | None] = [None] * slots
        self._most_running = running
        self._budget = budget
        self._caching = caching
        self._parking = parking
        self._growth = growth
        self._saved = 0  # tokens of parked requests
        self._clock = itertools.count()

    @property
    def running(self) -> list[Slot]:
        """The slots of running requests, by index."""
        return [slot for slot in self._slots if slot is not None and slot.reserved]

    @property
    def free(self) -> int:
        """Number of further requests that may run, if there is memory."""
        return self._most_running - len(self.running)

    @property
    def caches(self) -> list[Slot]:
        """The prefix caches, least recently used first."""
        kept = [slot for slot in self._slots if slot is not None and not slot.reserved]
        return sorted(kept, key=lambda slot: slot.used)

    def fits(self, length: int, need: int, *, without: Collection[Slot] = ()) -> bool:
        """Whether a request can run now, or could without the slots `without`.

        Args:
            length: Tokens that it starts with: its prompt, or more if it was parked.
            need: Tokens of the prompt and of the longest answer.
            without: Slots of running requests.
        """
        running = [slot for slot in self.running if slot not in without]
        taken = sum(self._whole(slot.reserved) for slot in running)
        return len(running) < self._most_running and taken + self._whole(self._step(length, need)) <= self._budget

    def take(self, prompt: Content, need: int) -> Slot | None:
        """Allocate a slot for a request, with the longest cached prefix of its prompt.

        Args:
            prompt: Its prompt.
            need: Tokens of the prompt and of the longest answer.

        Returns:
            The slot, with `length` computed tokens, at most all but one; None while there is no room.
        """
        if not self.fits(len(prompt), need):
            return None
        source, match = self._longest_match(prompt)
        reserve = self._step(len(prompt), need)
        return self._beside(source, match, prompt, reserve) or self._instead_of(source, match, prompt, reserve)

    def grow(self, slot: Slot, need: int, ahead: int = 1) -> bool:
        """Reserve a further step for a running request that has filled its memory, or less if less is free.

        Frees prefix caches if necessary.

        Args:
            slot: Its slot.
            need: Tokens of the prompt and of the longest answer.
            ahead: Tokens of its next run.

        Returns:
            Whether there is room for that run.
        """
        wanted = self._step(slot.length + ahead - 1, need)
        others = self._taken() - self._whole(slot.reserved)
        for cache in self.caches:
            if others + self._whole(wanted) <= self._budget:
                break
            others -= self._whole(cache.length)
            self._drop(cache)
        granted = min(wanted, (self._budget - others) // self._memory.granule * self._memory.granule)
        if granted < slot.length + ahead:
            return False
        slot.reserved = max(granted, slot.reserved)
        return True

    def park(self, slot: Slot) -> Parked:
        """Free the slot of a running request, and keep its keys and values if there is memory for them."""
        saved = None
        if self._saved + slot.length <= self._parking:
            with contextlib.suppress(MemoryError):
                saved = self._memory.save(slot.index, slot.length)
                self._saved += slot.length
        self._drop(slot)
        slot.reserved = 0
        return Parked(slot.content, slot.length, saved)

    def resume(self, parked: Parked, length: int, need: int) -> Slot | None:
        """Allocate a slot for a parked request, and restore its keys and values. Frees prefix caches if necessary.

        Keys and values that were not saved are not copied from prefix caches either: only if they are computed again as
        before does the request continue from the same bits.

        Args:
            parked: The parked request.
            length: Most tokens that it has had.
            need: Tokens of the prompt and of the longest answer.

        Returns:
            The slot, with `parked.length` computed tokens or with none; None while there is no room.
        """
        if not self.fits(length, need):
            return None
        slot = self._beside(None, 0, parked.content, self._step(length, need))
        assert slot is not None  # noqa: S101  # all prefix caches can be freed
        if parked.saved is not None:
            self._memory.restore(parked.saved, slot.index)
            slot.length = parked.length
            self.forget(parked)
        return slot

    def forget(self, parked: Parked) -> None:
        """Free the saved keys and values of a parked request."""
        if parked.saved is not None:
            self._saved -= parked.length

    def extend(self, slot: Slot, count: int) -> None:
        """Record that `count` more tokens of a running request are computed."""
        slot.length += count

    def restart(self, slot: Slot, content: Content) -> None:
        """Empty the slot of a running request, whose content is another one from now on. Its memory stays reserved."""
        self._memory.release(slot.index)
        slot.content, slot.length = content, 0

    def finish(self, slot: Slot, content: Content | None) -> None:
        """Turn the slot of a finished request into a prefix cache, or free it.

        Args:
            slot: Its slot.
            content: Its computed tokens; None if they are not usable.
        """
        slot.reserved = 0
        useful = min(slot.length, content.comparable) if content is not None and self._caching else 0
        if content is None or useful < SHORTEST_MATCH:
            self._drop(slot)
            return
        if useful < slot.length:
            self._memory.release(slot.index, useful)
        slot.content, slot.length, slot.used = content, useful, next(self._clock)

    def distrust(self, content: Content) -> None:
        """Free the prefix caches that share tokens with a content whose keys and values are not finite.

        They may come from one of these caches, if its request was cancelled before its logits were computed.
        """
        for cache in self.caches:
            if common_prefix(cache.content, content) >= SHORTEST_MATCH:
                self._drop(cache)

    def side_by_side(self, slots: Sequence[Slot]) -> int:
        """Move slots so that they are adjacent, with as few moved tokens as possible.

        Returns:
            The first index.
        """
        size = len(slots)
        indices = [slot.index for slot in slots]
        if max(indices) - min(indices) + 1 == size:
            return min(indices)
        wanted = set(map(id, slots))

        def to_move(first: int) -> int:
            inside = self._slots[first : first + size]
            strangers = sum(slot.length for slot in inside if slot is not None and id(slot) not in wanted)
            return strangers + sum(slot.length for slot in slots if not first <= slot.index < first + size)

        first = min(range(len(self._slots) - size + 1), key=to_move)
        targets = [index for index in range(first, first + size) if id(self._slots[index]) not in wanted]
        outside = [slot for slot in slots if not first <= slot.index < first + size]
        for slot, index in zip(outside, targets, strict=True):
            self._move(slot, index)
        return first

    def _longest_match(self, prompt: Content) -> tuple[Slot | None, int]:
        best: Slot | None = None
        match = 0
        if self._caching:
            for slot in (*self.running, *self.caches):
                # The last token is always computed, for its logits.
                common = min(common_prefix(slot.content, prompt), slot.length, len(prompt) - 1)
                if common >= max(match, SHORTEST_MATCH):
                    best, match = slot, common
        return best, match

    def _beside(self, source: Slot | None, match: int, prompt: Content, reserve: int) -> Slot | None:
        """A new slot with a copy of the matching prefix; None if only the source's own slot is available."""
        if source is not None and not source.reserved and match == source.length:
            return None  # all of it matches, so it can be continued in place
        for cache in self.caches:
            if self._room(reserve) and None in self._slots:
                break
            if cache is not source:
                self._drop(cache)
        if not self._room(reserve) or None not in self._slots:
            return None
        index = self._free_index()
        if source is not None:
            source.used = next(self._clock)
            self._memory.copy(source.index, index, match)
        slot = Slot(index, prompt, match, reserve, next(self._clock))
        self._slots[index] = slot
        return slot

    def _instead_of(self, source: Slot | None, match: int, prompt: Content, reserve: int) -> Slot:
        """The source's own slot, truncated to the matching prefix."""
        assert source is not None and not source.reserved  # noqa: S101, PT018  # else `_beside` had found a slot
        if source.length > match:
            self._memory.release(source.index, match)
        source.content, source.length, source.reserved, source.used = prompt, match, reserve, next(self._clock)
        for cache in self.caches:
            if self._taken() <= self._budget:
                break
            self._drop(cache)
        return source

    def _step(self, length: int, need: int) -> int:
        """Tokens to reserve for a request of `length` tokens: at most `need` and the budget."""
        return min(
            need, length + self._growth, max(self._budget // self._memory.granule * self._memory.granule, length)
        )

    def _taken(self) -> int:
        return sum(self._whole(slot.reserved or slot.length) for slot in self._slots if slot is not None)

    def _room(self, reserve: int) -> bool:
        return self._taken() + self._whole(reserve) <= self._budget

    def _whole(self, tokens: int) -> int:
        """Tokens rounded up to whole pages."""
        return -(-tokens // self._memory.granule) * self._memory.granule

    def _free_index(self) -> int:
        """The free index nearest to a running slot."""
        busy = [slot.index for slot in self.running] or [0]
        free = [index for index, slot in enumerate(self._slots) if slot is None]
        return min(free, key=lambda index: min(abs(index - other) for other in busy))

    def _drop(self, slot: Slot) -> None:
        self._memory.release(slot.index)
        self._slots[slot.index] = None

    def _move(self, slot: Slot, index: int) -> None:
        other, old = self._slots[index], slot.index
        self._memory.swap(old, index, lengths=(slot.length, other.length if other is not None else 0))
        self._slots[index], self._slots[old] = slot, other
        slot.index = index
        if other is not None:
            other.index = old
