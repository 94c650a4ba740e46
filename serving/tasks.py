"""Several things at once on the event loop, and none of them left behind."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine, Iterable
from typing import Any, TypeVar

T = TypeVar("T")


async def together(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Run coroutines at the same time. When one fails the others are cancelled, and its exception is raised alone.

    Returns:
        Their results, in order.
    """
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(coroutine) for coroutine in coroutines]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from failures.exceptions[0].__cause__
    return [task.result() for task in tasks]


async def unless(work: Awaitable[Any], interruption: Awaitable[Any]) -> bool:
    """Do the work, but cancel it when the interruption is there first.

    Args:
        work: What it raises is raised.
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
        await drop(working, waiting)


async def drop(*futures: asyncio.Future[Any]) -> None:
    """Cancel tasks and wait until they have ended, whichever way they end."""
    for future in futures:
        future.cancel()
    await asyncio.gather(*futures, return_exceptions=True)
