"""Concurrent tasks on the event loop that are always awaited, also on failure and cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Coroutine, Iterable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


async def gather_or_cancel(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Run coroutines concurrently; when one fails, cancel the others and raise its exception alone.

    Returns:
        Their results, in order.
    """
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(coroutine) for coroutine in coroutines]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from failures.exceptions[0].__cause__
    return [task.result() for task in tasks]


async def run_until(work: Awaitable[Any], interruption: Awaitable[Any]) -> bool:
    """Run `work` until it is done or `interruption` is, and cancel the other one.

    Args:
        work: Its exception is raised.
        interruption: Cancelled when the work is done.

    Returns:
        Whether the work was done.
    """
    working, waiting = asyncio.ensure_future(work), asyncio.ensure_future(interruption)
    try:
        await asyncio.wait((working, waiting), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
            return True
        return False
    finally:
        await cancel_and_wait(working, waiting)


async def beside(events: AsyncGenerator[T, None], task: asyncio.Task[Any] | None) -> AsyncGenerator[T | None, None]:
    """Yield events while a task runs, and None once when the task is done.

    Args:
        events: The events. They are closed when this generator is closed or cancelled.
        task: The task; None: already done.

    Raises:
        BaseException: The task's exception, at once.
    """
    following: asyncio.Future[T | None] | None = None
    try:
        while task is not None and not task.done():
            following = following or asyncio.ensure_future(anext(events, None))
            await asyncio.wait((following, task), return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                event, following = following.result(), None
                if event is None:  # they have ended
                    return
                yield event
        if task is not None:
            task.result()
        yield None
        if following is not None:
            event = await following
            if event is None:
                return
            yield event
        async for event in events:  # no task per event is needed any more
            yield event
    finally:
        if following is not None:
            await cancel_and_wait(following)


_END: Any = object()


async def merged(generators: Sequence[AsyncGenerator[T, None]], *, at_once: int) -> AsyncGenerator[T, None]:
    """Yield the values of several generators as they come, those of each in its order.

    Args:
        generators: The generators. They are closed when this one is closed or cancelled.
        at_once: How many may run at the same time; the others follow in order.

    Raises:
        BaseException: That of the first generator that fails, at once.
    """
    waiting = list(reversed(generators))
    running: dict[asyncio.Future[T], AsyncGenerator[T, None]] = {}

    def go_on(generator: AsyncGenerator[T, None]) -> None:
        running[asyncio.ensure_future(anext(generator, _END))] = generator

    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                go_on(waiting.pop())
            done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for future in [future for future in running if future in done]:
                value = future.result()
                generator = running.pop(future)
                if value is not _END:
                    go_on(generator)
                    yield value
    finally:
        await cancel_and_wait(*running)
        for generator in generators:
            await generator.aclose()


async def cancel_and_wait(*futures: asyncio.Future[Any]) -> None:
    """Cancel tasks and wait until all have ended; their results and exceptions are ignored."""
    for future in futures:
        future.cancel()
    await asyncio.gather(*futures, return_exceptions=True)
