"""Who is next: first come first served, reading in chunks, and no running answer is kept waiting for more than one."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from decoder_service.engine.batching.prefix import Content
from decoder_service.engine.batching.scheduler import LEAST_AHEAD, Scheduler, Task
from decoder_service.engine.batching.slots import Slots
from tests.decoder_service.engine.batching.test_slots import Notes


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
