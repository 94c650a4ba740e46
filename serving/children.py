"""Child processes that serve: started again when they die, and ended with a grace period."""

from __future__ import annotations

import asyncio
import contextlib
from asyncio.subprocess import Process
from collections.abc import Awaitable, Callable

_FIRST_BACKOFF = 0.5
_LAST_BACKOFF = 30.0
"""Seconds."""


async def keep_running(ended: Callable[[float], Awaitable[None]], restart: Callable[[], Awaitable[bool]]) -> None:
    """Start a process again whenever it dies, ever more slowly while it keeps dying. Runs until it is cancelled.

    Args:
        ended: Waits until the process has died, and reports that. Gets the seconds until it is started again.
        restart: Starts it. Returns True when it serves, False if it died before.
    """
    backoff = _FIRST_BACKOFF
    while True:
        await ended(backoff)
        await asyncio.sleep(backoff)
        backoff = _FIRST_BACKOFF if await restart() else min(2 * backoff, _LAST_BACKOFF)


async def end(process: Process | None, seconds: float) -> None:
    """Terminate a process, and kill it if it has not ended after `seconds`.

    Args:
        process: The process; nothing happens if it has ended, or if there is none.
        seconds: Its grace period.
    """
    if process is None or process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), seconds)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):  # it has ended since
            process.kill()
        await process.wait()
