"""Events beside a task."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from serving.tasks import beside, merged


class Source:
    """Events that the test sends; tells when they were left."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[int] = asyncio.Queue()
        self.left = False

    async def events(self) -> AsyncGenerator[int, None]:
        try:
            while (number := await self.queue.get()) >= 0:
                yield number
        finally:
            self.left = True


async def test_events_go_on_before_and_after_the_task_is_done() -> None:
    """And None is among them once, at that moment, also where it comes in the middle of waiting for an event."""
    source, done = Source(), asyncio.Event()
    task = asyncio.create_task(done.wait())
    async with aclosing(beside(source.events(), task)) as events:
        source.queue.put_nowait(1)
        assert await anext(events) == 1
        following = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0)
        done.set()
        assert await following is None
        for number in (2, 3, -1):
            source.queue.put_nowait(number)
        assert [event async for event in events] == [2, 3]


@pytest.mark.parametrize("after", [False, True])
async def test_events_may_end_at_any_time(after: bool) -> None:
    """Before the task is done, or while it is being told that it is."""
    source, done = Source(), asyncio.Event()
    task = asyncio.create_task(done.wait())
    events = beside(source.events(), task)
    following = asyncio.ensure_future(anext(events, "end"))
    await asyncio.sleep(0)
    if after:
        done.set()
        assert await following is None
        following = asyncio.ensure_future(anext(events, "end"))
    source.queue.put_nowait(-1)
    assert await following == "end"
    assert source.left
    task.cancel()


async def test_without_a_task_it_was_done_before() -> None:
    """None is the first."""
    source = Source()
    source.queue.put_nowait(7)
    source.queue.put_nowait(-1)
    assert [event async for event in beside(source.events(), None)] == [None, 7]


async def test_a_failure_of_the_task_ends_the_events_at_once() -> None:
    """Whoever waits for the next one gets the failure, and the events are left."""
    source = Source()

    async def fail() -> None:
        raise LookupError

    with pytest.raises(LookupError):
        async with aclosing(beside(source.events(), asyncio.create_task(fail()))) as events:
            await anext(events)
    assert source.left


async def test_cancelling_who_waits_leaves_the_events() -> None:
    """The source is not left waiting for nobody."""
    source = Source()
    task = asyncio.create_task(asyncio.Event().wait())
    events = beside(source.events(), task)
    waiting = asyncio.ensure_future(anext(events))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert source.left
    assert not task.done()
    task.cancel()


async def test_merged_yields_what_comes_and_closes_all() -> None:
    """Values come as they are made, whoever makes them; leaving closes those that ran and those that did not."""
    sources = [Source(), Source(), Source()]
    async with aclosing(merged([source.events() for source in sources], at_once=2)) as values:
        sources[1].queue.put_nowait(10)
        sources[2].queue.put_nowait(20)
        assert await anext(values) == 10
        sources[0].queue.put_nowait(1)
        assert await anext(values) == 1
        following = asyncio.ensure_future(anext(values))
        await asyncio.sleep(0)
        assert not following.done()  # the third waits for its turn
        sources[1].queue.put_nowait(-1)
        assert await following == 20
    assert [source.left for source in sources] == [True] * 3


async def test_a_failure_among_the_merged_ends_the_others() -> None:
    """At once, with its exception."""
    source = Source()

    async def fails() -> AsyncGenerator[int, None]:
        yield 1
        raise KeyError("x")

    async with aclosing(merged([source.events(), fails()], at_once=2)) as values:
        assert await anext(values) == 1
        with pytest.raises(KeyError):
            await anext(values)
        assert source.left
