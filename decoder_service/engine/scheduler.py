"""Who is worked on next. Pure: it knows slots and numbers of tokens, and runs nothing.

waiting ── first come, first served ──▶ reading (its prompt, in chunks) ──▶ answering (a token each step) ──▶ gone

A prompt is read to its end before the next one is begun, unless it is longer than a step has room for: then the next
one is begun beside it, and chunks go in turns to the prompt with the fewest tokens left and to the oldest. So a short
prompt behind a long one is read at once, and the long one still gets every second chunk. A request that does not fit
yet holds up those behind it: small ones that overtook it again and again would keep it out for ever.
"""

from __future__ import annotations

import collections
from dataclasses import dataclass
from typing import Generic, TypeVar

from decoder_service.engine.prefix import Content, common_prefix
from decoder_service.engine.slots import SHORTEST_MATCH, Slot, Slots


@dataclass(eq=False)
class Task:
    """A request as the scheduler sees it.

    Attributes:
        prompt: What is to be read.
        need: Tokens of the prompt and the longest answer.
        slot: Where it lies, once it runs.
    """

    prompt: Content
    need: int
    slot: Slot | None = None

    @property
    def place(self) -> Slot:
        """Its slot, which it must have."""
        assert self.slot is not None  # noqa: S101  # only the scheduler's own order could break this
        return self.slot

    @property
    def unread(self) -> int:
        """Tokens of the prompt that are not computed yet, once it runs."""
        return len(self.prompt) - self.place.length


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
    """

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._waiting: collections.deque[T] = collections.deque()
        self._reading: list[T] = []  # the oldest first
        self._shortest_next = True
        self._answering: list[T] = []

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not (self._waiting or self._reading or self._answering)

    @property
    def tasks(self) -> list[T]:
        """All that are here."""
        return [*self._answering, *self._reading, *self._waiting]

    @property
    def answering(self) -> list[T]:
        """Those that get a token in the next step."""
        return list(self._answering)

    @property
    def readable(self) -> int:
        """How many have a prompt to be read and a place, or a free place to come to."""
        return len(self._reading) + min(len(self._waiting), self._slots.free)

    def add(self, task: T) -> None:
        """A request comes."""
        self._waiting.append(task)

    def next_chunk(self, room: int) -> Chunk[T] | None:
        """What to read next, or None where nobody waits, nobody fits, or there is no room.

        Args:
            room: Most tokens to read.
        """
        if room < 1:
            return None
        self._begin(room)
        if not self._reading:
            return None
        task = self._next()
        start = task.place.length
        return Chunk(task, start, min(len(task.prompt), start + room))

    def _begin(self, room: int) -> None:
        """Begin prompts, as long as all that have been begun are longer than there is room for."""
        while self._waiting and all(task.unread > room for task in self._reading):
            first = self._waiting[0]
            if any(_comes_after(task, first) for task in self._reading):
                return
            slot = self._slots.take(first.prompt, first.need)
            if slot is None:
                return
            first.slot = slot
            self._reading.append(self._waiting.popleft())

    def _next(self) -> T:
        """Whose chunk is next: in turns the prompt that is read soonest, and the oldest."""
        oldest, shortest = self._reading[0], min(self._reading, key=lambda task: task.unread)
        if shortest is oldest:
            return oldest
        self._shortest_next = not self._shortest_next
        return oldest if self._shortest_next else shortest

    def has_read(self, chunk: Chunk[T]) -> None:
        """A chunk has been computed. With its last one a task begins to answer."""
        chunk.task.place.length = chunk.stop
        if chunk.completes:
            self._reading.remove(chunk.task)
            self._answering.append(chunk.task)

    def decode_order(self) -> tuple[int, list[T]]:
        """Bring those that answer into neighbouring rows.

        Returns:
            The first row, and who lies there and in those after it.
        """
        first = self._slots.side_by_side([task.place for task in self._answering])
        return first, sorted(self._answering, key=lambda task: task.place.row)

    def remove(self, task: T, content: Content | None) -> None:
        """A request goes, wherever it is.

        Args:
            task: Which. One that is not here is let go of silently: it may have ended a moment before.
            content: What its computed tokens are, for those who come after; None where they are good for nothing.
        """
        if task in self._reading:
            self._reading.remove(task)
        elif task in self._answering:
            self._answering.remove(task)
        elif task in self._waiting:
            self._waiting.remove(task)
        if task.slot is not None:
            self._slots.finish(task.slot, content)
            task.slot = None


def _comes_after(reading: Task, waiting: Task) -> bool:
    """Whether a prompt begins like one that is being read, beyond what is read of it: it copies that later."""
    shared = min(common_prefix(reading.prompt, waiting.prompt), len(waiting.prompt) - 1)
    return shared >= SHORTEST_MATCH and shared > reading.place.length
