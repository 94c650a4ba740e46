"""Who is next: first come first served, reading in chunks, and no running answer is kept waiting for more than one."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from decoder_service.engine.batching.prefix import Content
from decoder_service.engine.batching.scheduler import LEAST_AHEAD, Scheduler, Task
from decoder_service.engine.batching.slots import Slots
from tests.decoder_service.engine.batching.test_slots import GRANULE, Notes


def scheduler(*, running: int = 3, budget: int = 1000) -> Scheduler[Task]:
    """A scheduler over slots that keep nothing."""
    memory = Notes([[] for _ in range(running)])
    return Scheduler(Slots(memory, slots=running, running=running, budget=budget, caching=False), read_ahead=True)


_names = itertools.count(1)


def task(tokens: int, answer: int = 5) -> Task:
    """A request of so many tokens, which no other one has."""
    return Task(Content(np.full(tokens, next(_names), dtype=np.int32)), tokens + answer)


def partial(tokens: int, available: int) -> Task:
    """A request of which only so many tokens can be read yet."""
    one = task(tokens)
    one.available = available
    return one


def read_all(queue: Scheduler[Task], room: int = 1000) -> list[tuple[Task, int, int]]:
    """Read until nobody can be read."""
    seen = []
    while (chunk := queue.next_chunk(room)) is not None:
        queue.prefilled(chunk)
        seen.append((chunk.task, chunk.start, chunk.stop))
    return seen


def test_a_prompt_is_read_in_chunks_that_fit() -> None:
    """Pieces follow each other without a gap or an overlap, none larger than the room, and the last one completes."""
    queue, one = scheduler(), task(25)
    queue.add(one)
    chunks = []
    for _ in range(3):
        chunk = queue.next_chunk(10)
        assert chunk is not None
        chunks.append((chunk.start, chunk.stop, chunk.completes))
        queue.prefilled(chunk)
    assert chunks == [(0, 10, False), (10, 20, False), (20, 25, True)]
    assert queue.next_chunk(10) is None
    assert queue.decoding == [one]


def test_first_come_first_served() -> None:
    """Prompts that a step has room for are read to their end in the order in which they came."""
    queue = scheduler()
    tasks = [task(8), task(2), task(9)]
    for one in tasks:
        queue.add(one)
    assert [one for one, _, _ in read_all(queue, 10)] == tasks


def test_a_short_prompt_does_not_wait_for_a_long_one() -> None:
    """It has the next chunk, whenever it comes, and the long one every second: neither waits for the other."""
    queue = scheduler(running=4)
    long, short, later = task(60), task(25), task(4)
    queue.add(long)
    assert queue.next_chunk(10) is not None  # chosen, and not yet computed
    queue.add(short)
    order = []
    while (chunk := queue.next_chunk(10)) is not None:
        queue.prefilled(chunk)
        order.append((chunk.task, chunk.start, chunk.stop))
        if len(order) == 3:
            queue.add(later)
    assert [one for one, _, _ in order] == [short, long, short, long, short, long, later, long, long, long]
    for one in (long, short, later):
        parts = [(start, stop) for which, start, stop in order if which is one]
        assert [start for start, _ in parts] == [0, *(stop for _, stop in parts[:-1])]
    assert queue.decoding == [short, later, long]


def test_long_prompts_take_turns_with_the_oldest() -> None:
    """However many short ones come, the oldest prompt has every second chunk."""
    queue = scheduler(running=3, budget=10_000)
    long = task(1000)
    queue.add(long)
    mine = 0
    for number in range(40):
        queue.add(task(5))
        chunk = queue.next_chunk(10)
        assert chunk is not None
        queue.prefilled(chunk)
        mine += chunk.task is long
        for one in queue.decoding:
            queue.remove(one, None)
        assert mine >= (number + 1) // 2


def test_a_prompt_that_begins_alike_waits_for_what_it_can_copy() -> None:
    """Two prompts with the same long beginning are not both computed: the second waits until the first is read."""
    memory = Notes([[] for _ in range(3)])
    queue = Scheduler[Task](Slots(memory, slots=3, running=3, budget=1000, caching=True), read_ahead=True)
    beginning = np.arange(100, dtype=np.int32)
    first = Task(Content(beginning), 105)
    second = Task(Content(np.append(beginning, 7).astype(np.int32)), 106)
    other = task(5)
    for one in (first, second, other):
        queue.add(one)
    order = [(one, stop - start) for one, start, stop in read_all(queue, 10)]
    assert order == [(first, 10)] * 10 + [(second, 1), (other, 5)]
    assert second.cached == 100


def test_those_that_could_be_read_are_counted() -> None:
    """The one that is being read, and of those that wait as many as there are places free."""
    queue = scheduler(running=3)
    assert queue.prefillable == 0
    for _ in range(5):
        queue.add(task(10))
    assert queue.prefillable == 3
    chunk = queue.next_chunk(4)
    assert chunk is not None
    queue.prefilled(chunk)
    assert queue.prefillable == 3
    chunk = queue.next_chunk(6)
    assert chunk is not None
    queue.prefilled(chunk)
    assert queue.prefillable == 2
    read_all(queue)
    assert (len(queue.decoding), queue.prefillable) == (3, 0)


def test_one_that_does_not_fit_is_not_overtaken() -> None:
    """A large request at the head waits for memory, and a small one behind it waits with it."""
    queue = scheduler(budget=100)
    first, large, small = task(40), task(90), task(4)
    for one in (first, large, small):
        queue.add(one)
    assert [one for one, _, _ in read_all(queue)] == [first]
    queue.remove(first, None)
    assert [one for one, _, _ in read_all(queue)] == [large]
    queue.remove(large, None)
    assert [one for one, _, _ in read_all(queue)] == [small]


def test_no_more_run_than_there_are_slots() -> None:
    """The one that is one too many waits until another goes."""
    queue = scheduler(running=2)
    tasks = [task(5) for _ in range(3)]
    for one in tasks:
        queue.add(one)
    read_all(queue)
    assert queue.decoding == tasks[:2]
    queue.remove(tasks[0], None)
    read_all(queue)
    assert queue.decoding == [tasks[1], tasks[2]]


def test_leaving_is_possible_anywhere() -> None:
    """Waiting, in the middle of the prompt, or answering: the place is free at once, and twice does no harm."""
    queue = scheduler(running=1)
    for stage in ("waiting", "reading", "answering"):
        gone, after = task(20), task(3)
        queue.add(gone)
        if stage != "waiting":
            chunk = queue.next_chunk(5 if stage == "reading" else 20)
            assert chunk is not None
            queue.prefilled(chunk)
        queue.add(after)
        queue.remove(gone, None)
        queue.remove(gone, None)
        assert [one for one, _, _ in read_all(queue)] == [after]
        queue.remove(after, None)
        assert queue.idle


def test_answers_lie_side_by_side() -> None:
    """After one in the middle has gone, those that are left are brought together, in the order of their rows."""
    queue = scheduler()
    tasks = [task(5) for _ in range(3)]
    for one in tasks:
        queue.add(one)
    read_all(queue)
    queue.remove(tasks[1], None)
    first, order = queue.decode_order()
    assert sorted(order, key=tasks.index) == [tasks[0], tasks[2]]
    assert [one.place.index for one in order] == [first, first + 1]


def test_a_prompt_is_read_as_far_as_its_features_are_there() -> None:
    """Chunks end where features are missing, few tokens are left until there are more, and the rest completes it."""
    queue, one = scheduler(), partial(300, LEAST_AHEAD)
    queue.add(one)
    assert read_all(queue, 50) == [(one, 0, 50)]
    assert queue.idle
    one.available = 60 + LEAST_AHEAD
    assert read_all(queue) == [(one, 50, 60 + LEAST_AHEAD)]
    one.available += LEAST_AHEAD - 1
    assert read_all(queue) == []
    one.available = 300
    assert not queue.idle
    assert read_all(queue) == [(one, 60 + LEAST_AHEAD, 300)]
    assert queue.decoding == [one]


def test_reading_ahead_may_be_unwanted() -> None:
    """Then nothing is read of a prompt that is not whole, and it takes no place."""
    queue, one = scheduler(), partial(300, 200)
    queue.read_ahead = False
    queue.add(one)
    assert queue.idle
    assert (read_all(queue), queue.prefillable, one.slot) == ([], 0, None)
    queue.read_ahead = True
    assert not queue.idle
    assert read_all(queue) == [(one, 0, 200)]
    queue.read_ahead = False
    one.available = 290
    assert read_all(queue) == []
    one.available = 300
    assert read_all(queue) == [(one, 200, 300)]


@pytest.mark.parametrize("available", [0, 100])
def test_one_that_waits_for_features_holds_up_nobody(available: int) -> None:
    """Those behind it are read past it, with or without a place of its own; it goes on when its features come."""
    queue, waits, second, third = scheduler(), partial(200, available), task(8), task(9)
    for one in (waits, second, third):
        queue.add(one)
    assert [one for one, _, _ in read_all(queue) if one is not waits] == [second, third]
    waits.available = 200
    assert read_all(queue) == [(waits, available, 200)]


@pytest.mark.parametrize("caching", [True, False])
def test_a_place_is_given_up_to_one_that_can_be_read(caching: bool) -> None:
    """A stalled prompt leaves its only slot, waits where it stood, and goes on from what is left of its work."""
    memory = Notes([[] for _ in range(2)])
    queue = Scheduler[Task](
        Slots(memory, slots=2, running=1, budget=1000, caching=caching), read_ahead=True, least_ahead=1
    )
    waits, second, third = partial(200, 100), task(8), task(9)
    queue.add(waits)
    assert read_all(queue) == [(waits, 0, 100)]
    queue.add(second)
    queue.add(third)
    assert read_all(queue) == [(second, 0, 8)]
    assert waits.slot is None
    assert not queue.idle
    waits.available = 200
    assert read_all(queue) == []
    queue.remove(second, None)
    start = 100 if caching else 0
    assert read_all(queue) == [(waits, start, 200)]
    assert waits.cached == 0
    queue.remove(waits, None)
    assert read_all(queue) == [(third, 0, 9)]


def test_memory_is_given_up_as_places_are() -> None:
    """The stalled prompt of which least was read goes first, and no more go than must."""
    queue = scheduler(running=4, budget=400)
    most, least, large = partial(150, 140), partial(150, 70), task(200)
    queue.add(most)
    queue.add(least)
    read_all(queue)
    queue.add(large)
    assert read_all(queue) == [(large, 0, 200)]
    assert (most.slot is not None, least.slot) == (True, None)


def test_nobody_gives_up_anything_for_a_part_of_a_prompt() -> None:
    """One more that is not whole waits for a place; there is nothing to do until features come."""
    queue = scheduler(running=2)
    tasks = [partial(200, 100) for _ in range(3)]
    for one in tasks:
        queue.add(one)
    assert [one for one, _, _ in read_all(queue)] == tasks[:2]
    assert queue.idle
    assert tasks[2].slot is None


def test_one_that_is_whole_does_not_wait_for_anothers_features() -> None:
    """Two prompts begin alike. One has all features and is read; one that has not waits for what it can copy."""
    memory = Notes([[] for _ in range(3)])
    queue = Scheduler[Task](Slots(memory, slots=3, running=3, budget=2000, caching=True), read_ahead=True)
    beginning = Content(np.arange(300, dtype=np.int32))
    first, twin, whole = (Task(beginning, 305, available) for available in (100, 100, None))
    for one in (first, twin, whole):
        queue.add(one)
    assert read_all(queue) == [(first, 0, 100), (whole, 100, 300)]
    assert twin.slot is None
    first.available = twin.available = 300
    assert [(one, stop - start) for one, start, stop in read_all(queue)] == [(first, 200), (twin, 1)]


def test_leaving_is_possible_while_features_are_waited_for() -> None:
    """With a place or without: it is free at once."""
    queue = scheduler(running=1)
    stalled, waits, after = partial(200, 100), partial(200, 0), task(3)
    queue.add(stalled)
    read_all(queue)
    queue.add(waits)
    queue.remove(stalled, None)
    queue.remove(waits, None)
    assert queue.tasks == []
    queue.add(after)
    assert read_all(queue) == [(after, 0, 3)]


@given(
    st.lists(
        st.tuples(st.integers(1, 40), st.lists(st.tuples(st.integers(0, 30), st.integers(0, 20)), max_size=3)),
        min_size=1,
        max_size=8,
    ),
    st.integers(1, 15),
    st.booleans(),
)
def test_everybody_is_answered_whose_features_come(
    requests: list[tuple[int, list[tuple[int, int]]]], room: int, caching: bool
) -> None:
    """Features come in parts at any time. Nothing is read before them, and the last ones are in nobody's way."""
    memory = Notes([[] for _ in range(3)])
    queue = Scheduler[Task](
        Slots(memory, slots=3, running=2, budget=120, caching=caching), read_ahead=True, least_ahead=2
    )
    left: dict[int, int] = {}
    coming: list[tuple[int, Task, int]] = []
    for tokens, parts in requests:
        one = partial(tokens, 0) if parts else task(tokens)
        left[id(one)] = 3
        queue.add(one)
        for when, available in parts:
            coming.append((when, one, min(available, tokens)))
        if parts:
            coming.append((max(when for when, _ in parts) + 1, one, tokens))
    step = 0
    while coming or not queue.idle:
        for item in [item for item in coming if item[0] <= step]:
            coming.remove(item)
            item[1].available = max(item[1].available or 0, item[2])
        for one in queue.decoding:
            left[id(one)] -= 1
            if left[id(one)] == 0:
                queue.remove(one, one.prompt)
        spent = 0
        while (chunk := queue.next_chunk(room - spent)) is not None:
            assert chunk.task.available is None or chunk.stop <= chunk.task.available
            spent += chunk.stop - chunk.start
            queue.prefilled(chunk)
        step += 1
        assert step < 1000
    assert set(left.values()) == {0}


@dataclass
class Answers:
    """Steps as the engine makes them, with numbers for tokens; what is drawn tells what lies before it."""

    queue: Scheduler[Task]
    slots: Slots
    memory: Notes
    drawn: dict[int, list[object]] = field(default_factory=dict)
    full: list[Task] = field(default_factory=list)

    def written(self, one: Task, count: int) -> None:
        """So many tokens more of it are computed: those of its prompt, then those that were drawn."""
        row, length = self.memory.rows[one.place.index], one.place.length
        whole = [*one.prompt.token_ids.tolist(), *self.drawn.get(one.number, [])]
        assert row[:length] == whole[:length]
        row[length:] = whole[length : length + count]

    def draw(self, one: Task) -> None:
        """The token after those that are computed, unless it is known from before it was parked."""
        answer = self.drawn.setdefault(one.number, [])
        if one.place.length - len(one.prompt) == len(answer):
            answer.append((one.number, len(answer)))
        if len(one.prompt) + len(answer) == one.need:
            self.queue.remove(one, one.prompt)

    def step(self, room: int) -> None:
        full = self.queue.make_room()
        for one in full:
            self.full.append(one)
            self.queue.remove(one, None)
        assert full or not self.queue.parked or any(one.slot is not None for one in self.queue.tasks)
        decoding = self.queue.decoding
        for one in decoding:
            assert one.place.length < one.place.reserved
            self.written(one, 1)
        self.queue.decoded(decoding)
        for one in decoding:
            self.draw(one)
        while (chunk := self.queue.next_chunk(room)) is not None:
            room -= chunk.stop - chunk.start
            self.written(chunk.task, chunk.stop - chunk.start)
            self.queue.prefilled(chunk)
            if chunk.completes:
                self.draw(chunk.task)


ARRIVALS = st.lists(
    st.tuples(
        st.integers(1, 40),  # tokens of the prompt
        st.integers(1, 60),  # tokens of the answer
        st.integers(0, 60),  # when it comes
        st.none() | st.integers(0, 60),  # when its features come, after that
        st.none() | st.integers(0, 90),  # when it is called off, after it came
    ),
    min_size=1,
    max_size=12,
)


@settings(deadline=None, max_examples=200)
@given(
    arrivals=ARRIVALS,
    room=st.integers(1, 60),
    running=st.integers(1, 6),
    budget=st.sampled_from([100, 104, 160, 300]),
    growth=st.sampled_from([1, 7, 32]),
    parking=st.sampled_from([0, 30, 1000]),
    caching=st.booleans(),
)
def test_no_two_wait_for_each_other(
    *,
    arrivals: list[tuple[int, int, int, int | None, int | None]],
    room: int,
    running: int,
    budget: int,
    growth: int,
    parking: int,
    caching: bool,
) -> None:
    """Answers grow beyond memory at any time: all end, the oldest is never parked, and no bound is ever passed.

    What lies in memory is always what a request stands for, be it copied out and back or computed again.
    """
    memory = Notes([[] for _ in range(running + 2)])
    slots = Slots(
        memory,
        slots=running + 2,
        running=running,
        budget=budget,
        caching=caching,
        parking=parking,
        growth=growth,
    )
    queue = Scheduler[Task](slots, read_ahead=True, least_ahead=2)
    answers = Answers(queue, slots, memory)
    here: list[tuple[int, Task, int | None, int | None]] = []
    for tokens, answer, when, late, leaves in arrivals:
        here.append((when, task(tokens, answer) if late is None else partial(tokens, tokens // 2), late, leaves))
    called_off, step = set(), 0
    while step <= 160 or not queue.idle:
        for when, one, late, leaves in here:
            if when == step:
                queue.add(one)
            if late is not None and when + late == step:
                one.available = len(one.prompt)
            if leaves is not None and when + leaves == step and one in queue.tasks:
                called_off.add(id(one))
                queue.remove(one, one.prompt if one.slot is not None else None)
        answers.step(room)
        held = sum(-(-(s.reserved or s.length) // GRANULE) * GRANULE for s in (*slots.running, *slots.caches))
        assert held <= budget
        assert sum(map(len, memory.rows)) <= budget
        assert sum(one.parked.length for one in queue.parked if one.parked is not None and one.parked.saved) <= parking
        begun = [one for one in queue.tasks if one.slot is not None]
        if queue.parked:
            assert max((one.number for one in begun), default=-1) < min(one.number for one in queue.parked)
        step += 1
        assert step < 5000
    assert (answers.full, queue.tasks, slots.running) == ([], [], [])
    for _, one, _, _ in here:
        expected = [(one.number, n) for n in range(one.need - len(one.prompt))]
        got = answers.drawn.get(one.number, [])
        assert got == expected[: len(got)]
        assert len(got) == len(expected) or id(one) in called_off


def test_an_answer_that_is_alone_and_cannot_grow_ends() -> None:
    """Only then: while another one runs, the one that came last waits, and goes on when the other is over."""
    memory = Notes([[] for _ in range(3)])
    slots = Slots(memory, slots=3, running=3, budget=40, caching=False, parking=0, growth=8)
    queue = Scheduler[Task](slots, read_ahead=True)
    answers = Answers(queue, slots, memory)
    long, other = task(10, 100), task(10, 20)
    queue.add(long)
    queue.add(other)
    seen = []
    while not queue.idle:
        answers.step(100)
        seen.append((long in queue.decoding, queue.parked))
    assert (True, [other]) in seen
    assert answers.full == [long]
    assert [len(answers.drawn[one.number]) for one in (long, other)] == [31, 20]


def test_nobody_is_begun_while_somebody_is_parked() -> None:
    """A small request that would fit waits, too: those before it go on first."""
    memory = Notes([[] for _ in range(4)])
    slots = Slots(memory, slots=4, running=4, budget=64, caching=False, parking=100, growth=8)
    queue = Scheduler[Task](slots, read_ahead=True)
    answers = Answers(queue, slots, memory)
    first, second, small = task(16, 40), task(24, 30), task(1, 2)
    for one in (first, second):
        queue.add(one)
    while not queue.parked:
        answers.step(100)
    assert queue.parked == [second]
    queue.add(small)
    assert slots.fits(1, 3)
    answers.step(100)
    assert (queue.decoding, queue.prefillable) == ([first], 0)
    queue.remove(first, None)
    answers.step(100)
    assert (queue.decoding, queue.parked) == ([second, small], [])


def test_one_that_is_parked_can_leave() -> None:
    """Its saved keys and values are given back, so that the next one's can be saved."""
    memory = Notes([[] for _ in range(3)])
    slots = Slots(memory, slots=3, running=3, budget=48, caching=False, parking=24, growth=8)
    queue = Scheduler[Task](slots, read_ahead=True)
    answers = Answers(queue, slots, memory)
    first = task(12, 30)
    queue.add(first)
    for _ in range(2):
        other = task(12, 30)
        queue.add(other)
        while not queue.parked:
            answers.step(100)
        (parked,) = queue.parked
        assert parked is other
        assert other.parked is not None
        assert other.parked.saved is not None
        queue.remove(other, None)
        assert queue.parked == []
        queue.remove(first, None)
        first = task(12, 30)
        queue.add(first)


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 6), st.integers(0, 20)), min_size=1, max_size=12),
    st.integers(1, 15),
)
def test_everybody_is_answered(requests: list[tuple[int, int, int]], room: int) -> None:
    """Whoever comes when, all get all their tokens; each that answers gets one in every step, between any chunks."""
    queue = scheduler(budget=120)
    coming = [(when, task(tokens, answer)) for tokens, answer, when in requests]
    left = {id(one): one.need - len(one.prompt) for _, one in coming}
    begun: list[Task] = []
    step = 0
    while coming or not queue.idle:
        for item in [item for item in coming if item[0] <= step]:
            coming.remove(item)
            queue.add(item[1])
        for one in queue.decoding:
            left[id(one)] -= 1
            if left[id(one)] == 0:
                queue.remove(one, None)
        spent = 0
        while (chunk := queue.next_chunk(room - spent)) is not None:
            spent += chunk.stop - chunk.start
            if chunk.task not in begun:
                begun.append(chunk.task)
            queue.prefilled(chunk)
        assert spent <= room
        step += 1
        assert step < 1000
    assert set(left.values()) == {0}
