"""Concurrent tasks on the event loop that are always awaited, also on failure and cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine, Iterable
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


async def cancel_and_wait(*futures: asyncio.Future[Any]) -> None:
    """Cancel tasks and wait until all have ended; their results and exceptions are ignored."""
    for future in futures:
        future.cancel()
    await asyncio.gather(*futures, return_exceptions=True)
