"""An engine that is lost comes back, and says when it is ready."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from decoder_service.engine import EngineError, EngineEvent, EngineFinished, FinishReason, TokenDrawn, supervisor
from decoder_service.engine.supervisor import Supervisor, events_of, failed
from serving.errors import ServiceError


async def test_it_is_loaded_until_it_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a loss: cleaned up, tried again after each failure, with longer waits, and ready at the end."""
    monkeypatch.setattr(supervisor, "FIRST_BACKOFF_SECONDS", 0.001)
    told: asyncio.Queue[object] = asyncio.Queue()
    outcomes = iter([None, EngineError("no memory"), EngineError("no memory"), None])

    async def load() -> None:
        if (error := next(outcomes)) is not None:
            raise error

    async def clean_up() -> None:
        told.put_nowait("cleaned up")

    engine = Supervisor(
        load, on_ready=lambda: told.put_nowait("loaded"), on_failure=lambda: told.put_nowait(engine.backoff)
    )
    await engine.start(told.put_nowait)
    assert engine.ready
    engine.unready()
    assert not engine.ready
    engine.revive(clean_up)
    expected = ["loaded", False, "cleaned up", 0.002, 0.004, "loaded", True]
    assert [await told.get() for _ in expected] == expected
    assert engine.ready
    engine.proven()
    assert engine.backoff == 0.001


async def test_the_first_start_may_fail() -> None:
    """Whoever starts it is told, and it is not ready."""

    async def load() -> None:
        raise EngineError("no memory")

    engine = Supervisor(load)
    with pytest.raises(EngineError, match="no memory"):
        await engine.start(lambda _: None)
    assert not engine.ready


async def test_one_that_is_stopped_does_not_come_back() -> None:
    """Not even where it was on its way."""
    loads = 0

    async def load() -> None:
        nonlocal loads
        loads += 1

    async def forever() -> None:
        await asyncio.Event().wait()

    engine = Supervisor(load)
    await engine.start(lambda _: None)
    engine.unready()
    engine.revive(forever)
    await engine.stop()
    assert (loads, engine.ready, engine.stopping) == (1, False, True)


async def test_events_end_with_the_last_one_or_an_error() -> None:
    """Nothing is read after the last event, and an error is raised."""
    queue: asyncio.Queue[EngineEvent | ServiceError] = asyncio.Queue()
    answer = [TokenDrawn(1), EngineFinished(FinishReason.LENGTH)]
    for event in (*answer, TokenDrawn(2), failed()):
        queue.put_nowait(event)
    assert [event async for event in events_of(queue)] == answer
    async with contextlib.aclosing(events_of(queue)) as events:
        assert await anext(events) == TokenDrawn(2)
        with pytest.raises(ServiceError, match="the engine failed on this request"):
            await anext(events)
