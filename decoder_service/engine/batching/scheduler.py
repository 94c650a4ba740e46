"""Selects what is computed next. It manages slots and token counts, and runs nothing.

waiting ── first come, first served ──▶ prefilling (the prompt, in chunks) ──▶ decoding (a token each step) ──▶ finished
                                            └───────────── parked, while memory is short ─────────────┘

A prompt is prefilled completely before the next one starts, unless it is longer than the room of a step: then the next
prompt starts as well, and chunks alternate between the prompt with the fewest tokens left and the oldest. So a short
prompt behind a long one is prefilled at once, and the long one still gets every second chunk. A request that does not
fit yet blocks those behind it: otherwise a series of small requests could delay it for ever.

A prompt whose features are incomplete is prefilled as far as they have arrived, if `read_ahead` is set and a slot is
free. It does not block others: those behind it pass it, and if one of them needs a slot, it gives up its own and
returns to its place in the queue. What was computed of it stays in the prefix cache while there is room.

The memory of an answer is reserved in steps. When none is left, prefix caches are freed, then the slots of prompts that
wait for features, then the youngest running request is parked: it gives up its slot. No request starts while one is
parked, and parked requests resume in the order of arrival, as soon as they fit. So every running request is older than
every parked one, the oldest request is never parked, and no two requests wait for each other.
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
"""Least tokens of an incomplete prompt that are worth a run of their own, which reads all weights."""


@dataclass(eq=False)
class Task:
    """A request as the scheduler sees it.

    Attributes:
        prompt: The prompt.
        need: Tokens of the prompt and the longest answer.
        available: Tokens of the prompt, from the first on, whose features have arrived; None: all.
        slot: Its slot, while it runs.
        cached: Tokens of the prompt that were found in the prefix cache, once its prefill has started.
        prefilled_before: Tokens of the prompt that were computed when it gave its slot up.
        parked: Its state while it is parked.
        grown: Most tokens for which it needed memory before it was parked; 0 if it never was.
        number: Its place in the order of arrival.
    """

    prompt: Content
    need: int
    available: int | None = None
    slot: Slot | None = None
    cached: int | None = None
    prefilled_before: int = 0
    parked: Parked | None = None
    grown: int = 0
    number: int = 0

    @property
    def place(self) -> Slot:
        """The slot of a running task."""
        assert self.slot is not None  # noqa: S101  # only the scheduler's own order could break this
        return self.slot

    @property
    def remaining(self) -> int:
        """Tokens of the prompt that are still to be prefilled, of a running task."""
        return len(self.prompt) - self.place.length

    @property
    def ahead(self) -> int:
        """Tokens of the answer that are computed in its next run: one, unless several are known."""
        return 1

    @property
    def whole(self) -> bool:
        """Whether all of the prompt can be prefilled."""
        return self.available is None or self.available == len(self.prompt)


T = TypeVar("T", bound=Task)


@dataclass(frozen=True)
class Chunk(Generic[T]):
    """A part of a prompt to be prefilled.

    Attributes:
        task: The task it belongs to.
        start: Its first token.
        stop: The token after its last.
    """

    task: T
    start: int
    stop: int

    @property
    def size(self) -> int:
        """Number of its tokens."""
        return self.stop - self.start

    @property
    def completes(self) -> bool:
        """Whether it is the last chunk of the prompt."""
        return self.stop == len(self.task.prompt)


class Scheduler(Generic[T]):
    """All requests in the engine, waiting, prefilling or decoding.

    Args:
        slots: The KV-cache slots.
        read_ahead: Whether incomplete prompts are prefilled.
        least_ahead: Least tokens of a chunk of an incomplete prompt.
    """

    def __init__(self, slots: Slots, *, read_ahead: bool, least_ahead: int = LEAST_AHEAD) -> None:
        self._slots = slots
        self._least_ahead = least_ahead
        self.read_ahead = read_ahead
        """Whether incomplete prompts are prefilled. May be changed at any time."""
        self._numbers = itertools.count()
        self._waiting: list[T] = []  # in order of arrival
        self._prefilling: list[T] = []  # the oldest first
        self._shortest_next = True
        self._decoding: list[T] = []
        self._parked: list[T] = []  # the oldest first

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do until a request or features arrive."""
        busy = self._decoding or self._parked or any(self.able(task) for task in self._prefilling)
        return not busy and self._next_to_start() is None

    @property
    def tasks(self) -> list[T]:
        """All tasks."""
        return [*self._decoding, *self._prefilling, *self._parked, *self._waiting]

    @property
    def parked(self) -> list[T]:
        """Parked tasks, the oldest first."""
        return list(self._parked)

    @property
    def decoding(self) -> list[T]:
        """Tasks that get a token in the next step."""
        return list(self._decoding)

    @property
    def prefillable(self) -> int:
        """Number of tasks with tokens to prefill that have a slot or can get one."""
        running = sum(self.able(task) > 0 for task in self._prefilling)
        if self._parked:
            return running
        places = self._slots.free + len(self._prefilling) - running
        return running + min(sum(self.able(task) > 0 for task in self._waiting), places)

    def able(self, task: T) -> int:
        """Tokens of a prompt that can be prefilled now; 0 if they are too few for a run."""
        if task.whole:
            return len(task.prompt) - (task.slot.length if task.slot is not None else 0)
        able = (task.available or 0) - (task.slot.length if task.slot is not None else task.prefilled_before)
        return able if self.read_ahead and able >= self._least_ahead else 0

    def add(self, task: T) -> None:
        """Add a new request."""
        task.number = next(self._numbers)
        self._waiting.append(task)

    def make_room(self) -> list[T]:
        """Reserve memory for the next run of each answer, parking requests if necessary; resume those that fit again.

        Returns:
            Tasks without memory though no other runs. The caller must end them.
        """
        full = []
        for task in sorted(self._decoding, key=_arrival):
            # Beside several known tokens a token is written that does not count, see the stepper.
            while task.slot is not None and task.slot.length + (ahead := _with_spare(task)) > task.slot.reserved:
                if self._slots.grow(task.slot, task.need, ahead):
                    continue
                stalled = self._stalled
                running = [*self._decoding, *self._prefilling]
                if stalled:
                    self._preempt(stalled[-1])
                elif len(running) > 1:
                    self._park(max(running, key=_arrival))
                else:
                    full.append(task)
                    break
        self._resume()
        return full

    def _park(self, task: T) -> None:
        """Park a running task: free its slot until there is memory again."""
        task.grown = max(task.grown, task.place.length, len(task.prompt))
        task.parked = self._slots.park(task.place)
        task.slot = None
        (self._decoding if task in self._decoding else self._prefilling).remove(task)
        bisect.insort(self._parked, task, key=_arrival)

    def _resume(self) -> None:
        """Resume parked tasks that fit, the oldest first. Preempts stalled tasks if necessary."""
        while self._parked:
            task = self._parked[0]
            stalled = self._stalled
            if task.parked is None or not self._slots.fits(
                task.grown, task.need, without=[other.place for other in stalled]
            ):
                return
            while (slot := self._slots.resume(task.parked, task.grown, task.need)) is None:
                self._preempt(stalled.pop())
            self._parked.remove(task)
            task.slot, task.parked = slot, None
            if slot.length < len(task.prompt):
                bisect.insort(self._prefilling, task, key=_arrival)
            else:
                self._decoding.append(task)

    def next_chunk(self, room: int) -> Chunk[T] | None:
        """The next chunk to prefill; None if no prompt can be prefilled, none fits, or there is no room.

        Args:
            room: Most tokens of the chunk.
        """
        if room < 1:
            return None
        self._start_prefills(room)
        ready = [task for task in self._prefilling if self.able(task)]
        if not ready:
            return None
        task = self._next(ready)
        start = task.place.length
        return Chunk(task, start, start + min(self.able(task), room))

    def _start_prefills(self, room: int) -> None:
        """Start prefills, as long as all started prompts are longer than the room."""
        while all(self.able(task) > room for task in self._prefilling if self.able(task)):
            task = self._next_to_start()
            if task is None:
                return
            stalled = self._stalled
            while (slot := self._slots.take(task.prompt, task.need)) is None:
                self._preempt(stalled.pop())
            task.slot = slot
            task.cached = min(slot.length, slot.length if task.cached is None else task.cached)
            self._waiting.remove(task)
            self._prefilling.append(task)

    def _next_to_start(self) -> T | None:
        """The waiting task whose prefill starts next: the first that can be prefilled; None if there is none.

        A task whose features are incomplete is next only if it fits without the slot of another task.
        """
        if self._parked:
            return None
        for task in self._waiting:
            if not self.able(task):
                continue
            # A complete prompt takes the slot of one that waits for features.
            before = [other for other in self._prefilling if self.able(other) or not task.whole]
            held = any(_shares_prefix(other, task) for other in before)
            if task.whole:
                stalled = [other.place for other in self._stalled]
                fits = self._slots.fits(len(task.prompt), task.need, without=stalled)
                return task if fits and not held else None
            if not held and self._slots.fits(len(task.prompt), task.need):
                return task
        return None

    @property
    def _stalled(self) -> list[T]:
        """Tasks with a slot that wait for features; the one with the fewest computed tokens is last."""
        return sorted((task for task in self._prefilling if not self.able(task)), key=lambda task: -task.place.length)

    def _preempt(self, task: T) -> None:
        """Preempt a stalled task: free its slot, and return it to its place in the queue."""
        self._prefilling.remove(task)
        task.prefilled_before = task.place.length
        self._slots.finish(task.place, task.prompt)
        task.slot = None
        bisect.insort(self._waiting, task, key=_arrival)

    def _next(self, ready: Sequence[T]) -> T:
        """The task of the next chunk: alternately the one with the fewest tokens left and the oldest."""
        oldest, shortest = ready[0], min(ready, key=lambda task: task.remaining)
        if shortest is oldest:
            return oldest
        self._shortest_next = not self._shortest_next
        return oldest if self._shortest_next else shortest

    def decoded(self, tasks: Sequence[T]) -> None:
        """Record that the next run of each task has been computed."""
        for task in tasks:
            self._slots.extend(task.place, task.ahead)

    def prefilled(self, chunk: Chunk[T]) -> None:
        """Record that a chunk has been computed. After its last chunk a task decodes."""
        self._slots.extend(chunk.task.place, chunk.size)
        if chunk.completes:
            self._prefilling.remove(chunk.task)
            self._decoding.append(chunk.task)

    def restart(self, task: T) -> None:
        """Prefill a decoding task from its first token on, after its prompt has become another one."""
        self._slots.restart(task.place, task.prompt)
        self._decoding.remove(task)
        bisect.insort(self._prefilling, task, key=_arrival)

    def decode_order(self) -> tuple[int, list[T]]:
        """Move the decoding tasks into adjacent slots.

        Returns:
            The index of the first slot, and the tasks in the order of their slots.
        """
        first = self._slots.side_by_side([task.place for task in self._decoding])
        return first, sorted(self._decoding, key=lambda task: task.place.index)

    def next_known(self) -> T | None:
        """The task whose known tokens are computed next, several in one run: the oldest; None if there is none."""
        return min((task for task in self._decoding if task.ahead > 1), key=_arrival, default=None)

    def distrust(self, task: T) -> None:
        """Empty the prefix cache of what a task may have copied or shared, because its logits are not finite."""
        self._slots.distrust(task.prompt)

    def remove(self, task: T, content: Content | None) -> None:
        """Remove a request in any state.

        Args:
            task: The task. One that is not here is ignored: it may have ended a moment before.
            content: The content of its computed tokens, for the prefix cache; None if they are not usable.
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


def _with_spare(task: Task) -> int:
    return task.ahead + (task.ahead > 1)


def _arrival(task: Task) -> int:
    return task.number


def _shares_prefix(running: Task, waiting: Task) -> bool:
    """Whether a waiting prompt shares more tokens with a running prefill than are computed: it copies them later."""
    shared = min(common_prefix(running.prompt, waiting.prompt), len(waiting.prompt) - 1)
    return shared >= SHORTEST_MATCH and shared > running.place.length
