"""Child processes are started again with growing delays, and ended."""

from __future__ import annotations

import asyncio
import signal
import sys

import pytest

from serving import children


async def test_delays_grow_until_it_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    """They double while the process dies before it serves, up to a bound, and start anew when it served."""
    slept, told = [], []
    outcomes = iter([False] * 8 + [True, False])

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    async def ended(backoff: float) -> None:
        told.append(backoff)

    async def restart() -> bool:
        try:
            return next(outcomes)
        except StopIteration:
            raise asyncio.CancelledError from None

    monkeypatch.setattr(children.asyncio, "sleep", sleep)
    with pytest.raises(asyncio.CancelledError):
        await children.keep_running(ended, restart)
    assert told == slept == [0.5, 1, 2, 4, 8, 16, 30, 30, 30, 0.5, 1]


async def _started(program: str) -> asyncio.subprocess.Process:
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE)
    assert child.stdout is not None
    assert await child.stdout.readline() == b"up\n"
    return child


async def test_a_process_is_terminated_and_then_killed() -> None:
    """One that takes SIGTERM ends by it; one that ignores it is killed after its grace period."""
    waiting = "import signal; print('up', flush=True); signal.pause()"
    willing = await _started(waiting)
    await children.end(willing, 60)
    assert willing.returncode == -signal.SIGTERM
    deaf = await _started(
        f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {waiting.partition(';')[2]}\nsignal.pause()"
    )
    await children.end(deaf, 0.01)
    assert deaf.returncode == -signal.SIGKILL
    await children.end(deaf, 60)  # it has ended already
    await children.end(None, 60)
