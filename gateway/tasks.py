"""Several things at once, of which all succeed or none goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
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


async def drop(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait until it has ended, whichever way it ends."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
