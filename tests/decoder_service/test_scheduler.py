"""Who is next: first come first served, reading in chunks, and no running answer is kept waiting for more than one."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from decoder_service.engine.prefix import Content
from decoder_service.engine.scheduler import Scheduler, Task
from decoder_service.engine.slots import Slots
from tests.decoder_service.test_slots import Notes


def scheduler(*, running: int = 3, budget: int = 1000) -> Scheduler[Task]:
    """A scheduler over slots that hold nothing."""
    memory = Notes([[] for _ in range(running)])
    return Scheduler(Slots(memory, rows=running, running=running, budget=budget, caching=False), read_ahead=True)


_names = itertools.count(1)


def task(tokens: int, answer: int = 5) -> Task:
    """A request of so many tokens, which no other one has."""
    return Task(Content(np.full(tokens, next(_names), dtype=np.int32)), tokens + answer)


def read_all(queue: Scheduler[Task], room: int = 1000) -> list[tuple[Task, int, int]]:
    """Read until nobody can be read."""
    seen = []
    while (chunk := queue.next_chunk(room)) is not None:
        queue.has_read(chunk)
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
        queue.has_read(chunk)
    assert chunks == [(0, 10, False), (10, 20, False), (20, 25, True)]
    assert queue.next_chunk(10) is None
    assert queue.answering == [one]


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
        queue.has_read(chunk)
        order.append((chunk.task, chunk.start, chunk.stop))
        if len(order) == 3:
            queue.add(later)
    assert [one for one, _, _ in order] == [short, long, short, long, short, long, later, long, long, long]
    for one in (long, short, later):
        parts = [(start, stop) for which, start, stop in order if which is one]
        assert [start for start, _ in parts] == [0, *(stop for _, stop in parts[:-1])]
    assert queue.answering == [short, later, long]


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
        queue.has_read(chunk)
        mine += chunk.task is long
        for one in queue.answering:
            queue.remove(one, None)
        assert mine >= (number + 1) // 2


def test_a_prompt_that_begins_alike_waits_for_what_it_can_copy() -> None:
    """Two prompts with the same long beginning are not both computed: the second waits until the first is read."""
    memory = Notes([[] for _ in range(3)])
    queue = Scheduler[Task](Slots(memory, rows=3, running=3, budget=1000, caching=True), read_ahead=True)
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
    assert queue.readable == 0
    for _ in range(5):
        queue.add(task(10))
    assert queue.readable == 3
    chunk = queue.next_chunk(4)
    assert chunk is not None
    queue.has_read(chunk)
    assert queue.readable == 3
    chunk = queue.next_chunk(6)
    assert chunk is not None
    queue.has_read(chunk)
    assert queue.readable == 2
    read_all(queue)
    assert (len(queue.answering), queue.readable) == (3, 0)


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
    assert queue.answering == tasks[:2]
    queue.remove(tasks[0], None)
    read_all(queue)
    assert queue.answering == [tasks[1], tasks[2]]


def test_leaving_is_possible_anywhere() -> None:
    """Waiting, in the middle of the prompt, or answering: the place is free at once, and twice does no harm."""
    queue = scheduler(running=1)
    for stage in ("waiting", "reading", "answering"):
        gone, after = task(20), task(3)
        queue.add(gone)
        if stage != "waiting":
            chunk = queue.next_chunk(5 if stage == "reading" else 20)
            assert chunk is not None
            queue.has_read(chunk)
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
    assert [one.place.row for one in order] == [first, first + 1]


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
        for one in queue.answering:
            left[id(one)] -= 1
            if left[id(one)] == 0:
                queue.remove(one, None)
        spent = 0
        while (chunk := queue.next_chunk(room - spent)) is not None:
            spent += chunk.stop - chunk.start
            if chunk.task not in begun:
                begun.append(chunk.task)
            queue.has_read(chunk)
        assert spent <= room
        step += 1
        assert step < 1000
    assert set(left.values()) == {0}
