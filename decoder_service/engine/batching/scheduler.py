"""Who is worked on next. Pure: it knows slots and numbers of tokens, and runs nothing.

waiting ── first come, first served ──▶ prefilling (its prompt, in chunks) ──▶ decoding (a token each step) ──▶ gone
                                            └────────── parked, while memory is short ──────────┘

A prompt is read to its end before the next one is begun, unless it is longer than a step has room for: then the next
one is begun beside it, and chunks go in turns to the prompt with the fewest tokens left and to the oldest. So a short
prompt behind a long one is read at once, and the long one still gets every second chunk. A request that does not fit
yet holds up those behind it: small ones that overtook it again and again would keep it out for ever.

A prompt whose features have not all come is read ahead, as far as they have, where that is wanted and there is a place.
It holds up nobody: those behind it pass, and where one of them lacks a place, it gives its own up and waits again where
it stood. What was computed of it stays as a cache while there is room.

An answer takes memory in steps as it grows. Where there is none, caches give way, then prompts that wait for features,
then the request that came last is parked: it leaves its slot. Nobody is begun while anybody is parked, and of the
parked the one that came first goes on first, as soon as it fits. So everybody who runs came before everybody who is
parked, the oldest of all is never parked, and no two wait for each other.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from decoder_service.engine.batching.prefix import Content, common_prefix
from decoder_service.engine.batching.slots import SHORTEST_MATCH, Parked, Slot, Slots

LEAST_AHEAD = 64
"""Fewer tokens of a prompt that is not all there yet are not worth a run of their own: it reads all weights."""


@dataclass(eq=False)
class Task:
    """A request as the scheduler sees it.

    Attributes:
        prompt: What is to be read.
        need: Tokens of the prompt and the longest answer.
        available: Tokens of the prompt, from the first on, that can be read; None: all.
        slot: Where it lies, once it runs.
        cached: Tokens of the prompt that were computed for others, once it has been begun.
        read: Tokens of the prompt that were computed when it gave its slot up.
        parked: What is left of it while it is parked.
        grown: Tokens that it had when it was parked last; 0 where it never was.
        number: Its place in the order of arrival.
    """

    prompt: Content
    need: int
    available: int | None = None
    slot: Slot | None = None
    cached: int | None = None
    read: int = 0
    parked: Parked | None = None
    grown: int = 0
    number: int = 0

    @property
    def place(self) -> Slot:
        """Its slot, which it must have."""
        assert self.slot is not None  # noqa: S101  # only the scheduler's own order could break this
        return self.slot

    @property
    def unread(self) -> int:
        """Tokens of the prompt that are not computed yet, once it runs."""
        return len(self.prompt) - self.place.length

    @property
    def whole(self) -> bool:
        """Whether all of the prompt can be read."""
        return self.available is None or self.available == len(self.prompt)


T = TypeVar("T", bound=Task)


@dataclass(frozen=True)
class Chunk(Generic[T]):
    """A piece of a prompt to be computed.

    Attributes:
        task: Whose.
        start: Its first token.
        stop: The token after its last.
    """

    task: T
    start: int
    stop: int

    @property
    def completes(self) -> bool:
        """Whether the prompt ends with it."""
        return self.stop == len(self.task.prompt)


class Scheduler(Generic[T]):
    """Requests, from their coming to their going.

    Args:
        slots: Where they lie.
        read_ahead: Whether prompts are read that are not whole.
        least_ahead: Tokens that are worth a chunk of such a prompt.
    """

    def __init__(self, slots: Slots, *, read_ahead: bool, least_ahead: int = LEAST_AHEAD) -> None:
        self._slots = slots
        self._least_ahead = least_ahead
        self.read_ahead = read_ahead
        """May be changed at any time."""
        self._numbers = itertools.count()
        self._waiting: list[T] = []  # in the order in which they came
        self._prefilling: list[T] = []  # the oldest first
        self._shortest_next = True
        self._decoding: list[T] = []
        self._parked: list[T] = []  # the oldest first

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do until a request or features come."""
        busy = self._decoding or self._parked or any(self.able(task) for task in self._prefilling)
        return not busy and self._next_begun() is None

    @property
    def tasks(self) -> list[T]:
        """All that are here."""
        return [*self._decoding, *self._prefilling, *self._parked, *self._waiting]

    @property
    def parked(self) -> list[T]:
        """Those that have been begun and wait for memory, the oldest first."""
        return list(self._parked)

    @property
    def decoding(self) -> list[T]:
        """Those that get a token in the next step."""
        return list(self._decoding)

    @property
    def readable(self) -> int:
        """How many have a prompt to be read and a place, or a place to come to."""
        reading = sum(self.able(task) > 0 for task in self._prefilling)
        if self._parked:
            return reading
        places = self._slots.free + len(self._prefilling) - reading
        return reading + min(sum(self.able(task) > 0 for task in self._waiting), places)

    def able(self, task: T) -> int:
        """Tokens of a prompt that can be read now and are worth it."""
        if task.whole:
            return len(task.prompt) - (task.slot.length if task.slot is not None else 0)
        able = (task.available or 0) - (task.slot.length if task.slot is not None else task.read)
        return able if self.read_ahead and able >= self._least_ahead else 0

    def add(self, task: T) -> None:
        """A request comes."""
        task.number = next(self._numbers)
        self._waiting.append(task)

    def make_room(self) -> list[T]:
        """See to it that each answer has memory for its next token, and let parked requests go on that fit again.

        Returns:
            Those that have none though nobody else runs. They are still here: whoever calls ends them.
        """
        full = []
        for task in sorted(self._decoding, key=_arrival):
            while task.slot is not None and task.slot.length == task.slot.reserved:
                if self._slots.grow(task.slot, task.need):
                    continue
                stalled = self._stalled
                running = [*self._decoding, *self._prefilling]
                if stalled:
                    self._give_up(stalled[-1])
                elif len(running) > 1:
                    self._park(max(running, key=_arrival))
                else:
                    full.append(task)
                    break
        self._resume()
        return full

    def _park(self, task: T) -> None:
        """Take a request's slot, and let it go on later."""
        task.grown = max(task.grown, task.place.length, len(task.prompt))
        task.parked = self._slots.park(task.place)
        task.slot = None
        (self._decoding if task in self._decoding else self._prefilling).remove(task)
        bisect.insort(self._parked, task, key=_arrival)

    def _resume(self) -> None:
        """Let parked requests go on where they fit, the oldest first; prompts that wait for features give way."""
        while self._parked:
            task = self._parked[0]
            stalled = self._stalled
            if task.parked is None or not self._slots.fits(
                task.grown, task.need, without=[other.place for other in stalled]
            ):
                return
            while (slot := self._slots.resume(task.parked, task.grown, task.need)) is None:
                self._give_up(stalled.pop())
            self._parked.remove(task)
            task.slot, task.parked = slot, None
            if slot.length < len(task.prompt):
                bisect.insort(self._prefilling, task, key=_arrival)
            else:
                self._decoding.append(task)

    def next_chunk(self, room: int) -> Chunk[T] | None:
        """What to read next, or None where nobody can be read, nobody fits, or there is no room.

        Args:
            room: Most tokens to read.
        """
        if room < 1:
            return None
        self._begin(room)
        ready = [task for task in self._prefilling if self.able(task)]
        if not ready:
            return None
        task = self._next(ready)
        start = task.place.length
        return Chunk(task, start, start + min(self.able(task), room))

    def _begin(self, room: int) -> None:
        """Begin prompts, as long as all that have been begun are longer than there is room for."""
        while all(self.able(task) > room for task in self._prefilling if self.able(task)):
            task = self._next_begun()
            if task is None:
                return
            stalled = self._stalled
            while (slot := self._slots.take(task.prompt, task.need)) is None:
                self._give_up(stalled.pop())
            task.slot = slot
            task.cached = min(slot.length, slot.length if task.cached is None else task.cached)
            self._waiting.remove(task)
            self._prefilling.append(task)

    def _next_begun(self) -> T | None:
        """Who is begun next: the first of those that wait, leaving out those that have not all features yet.

        Such a one is begun as well, but only where it need not wait for anything, and nobody gives anything up for it.
        """
        if self._parked:
            return None
        for task in self._waiting:
            if not self.able(task):
                continue
            # One that is whole does not wait for features that another one waits for.
            before = [other for other in self._prefilling if self.able(other) or not task.whole]
            held = any(_comes_after(other, task) for other in before)
            if task.whole:
                stalled = [other.place for other in self._stalled]
                fits = self._slots.fits(len(task.prompt), task.need, without=stalled)
                return task if fits and not held else None
            if not held and self._slots.fits(len(task.prompt), task.need):
                return task
        return None

    @property
    def _stalled(self) -> list[T]:
        """Those that have a place and wait for features; last the one of which least was read."""
        return sorted((task for task in self._prefilling if not self.able(task)), key=lambda task: -task.place.length)

    def _give_up(self, task: T) -> None:
        """Take a stalled prompt's place, and let it wait where it stood."""
        self._prefilling.remove(task)
        task.read = task.place.length
        self._slots.finish(task.place, task.prompt)
        task.slot = None
        bisect.insort(self._waiting, task, key=_arrival)

    def _next(self, ready: Sequence[T]) -> T:
        """Whose chunk is next: in turns the prompt that is read soonest, and the oldest."""
        oldest, shortest = ready[0], min(ready, key=lambda task: task.unread)
        if shortest is oldest:
            return oldest
        self._shortest_next = not self._shortest_next
        return oldest if self._shortest_next else shortest

    def decoded(self, tasks: Sequence[T]) -> None:
        """A token of each of these answers has been computed."""
        for task in tasks:
            self._slots.extend(task.place, 1)

    def prefilled(self, chunk: Chunk[T]) -> None:
        """A chunk has been computed. With its last one a task begins to answer."""
        self._slots.extend(chunk.task.place, chunk.stop - chunk.start)
        if chunk.completes:
            self._prefilling.remove(chunk.task)
            self._decoding.append(chunk.task)

    def decode_order(self) -> tuple[int, list[T]]:
        """Bring those that answer into neighbouring rows.

        Returns:
            The first row, and who lies there and in those after it.
        """
        first = self._slots.side_by_side([task.place for task in self._decoding])
        return first, sorted(self._decoding, key=lambda task: task.place.row)

    def remove(self, task: T, content: Content | None) -> None:
        """A request goes, wherever it is.

        Args:
            task: Which. One that is not here is let go of silently: it may have ended a moment before.
            content: What its computed tokens are, for those who come after; None where they are good for nothing.
        """
        if task in self._prefilling:
            self._prefilling.remove(task)
        elif task in self._decoding:
            self._decoding.remove(task)
        elif task in self._parked:
            self._parked.remove(task)
        elif task in self._waiting:
            self._waiting.remove(task)
        if task.parked is not None:
            self._slots.forget(task.parked)
            task.parked = None
        if task.slot is not None:
            self._slots.finish(task.slot, content)
            task.slot = None


def _arrival(task: Task) -> int:
    return task.number


def _comes_after(reading: Task, waiting: Task) -> bool:
    """Whether a prompt begins like one that is being read, beyond what is read of it: it copies that later."""
    shared = min(common_prefix(reading.prompt, waiting.prompt), len(waiting.prompt) - 1)
    return shared >= SHORTEST_MATCH and shared > reading.place.length
