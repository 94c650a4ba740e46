"""The genai engine's child process: signals, its death, its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from decoder_service.engine import Prefilled, TokenDrawn
from decoder_service.engine.genai.engine import GenaiEngine
from decoder_service.engine.genai.messages import WorkerConfig
from decoder_service.engine.interface import EngineError
from decoder_service.request.prompt import PromptBuilder
from serving.bundle import Bundle
from serving.errors import Code, ServiceError
from tests.decoder_service.cases import TOKENS, Case
from tests.decoder_service.engines import LONG, collect, endless, make_engine, running, tokens_of
from tests.decoder_service.spy import listen

pytestmark = pytest.mark.asyncio(loop_scope="module")


def genai(bundle: Bundle) -> GenaiEngine:
    """The engine under test."""
    engine = make_engine("genai", bundle)
    assert isinstance(engine, GenaiEngine)
    return engine


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(bundle: Bundle) -> AsyncIterator[GenaiEngine]:
    """One engine for the tests that leave it as it was."""
    engine = genai(bundle)
    async with running(engine):
        yield engine


async def test_closing_frees_the_engine(engine: GenaiEngine, prompts: PromptBuilder, cases: dict[str, Case]) -> None:
    """Closing the generator in the middle of a long answer ends it; the next request runs at once."""
    heard = listen(engine)
    async with contextlib.aclosing(engine.generate(endless(prompts, cases))) as events:
        for _ in range(4):
            event = await anext(events)
        waiting = asyncio.create_task(tokens_of(engine, cases["text alone"].request(prompts, tokens=3)))
        await asyncio.sleep(0)  # it takes its place in the queue
    assert isinstance(event, TokenDrawn)
    assert len(await waiting) == 3
    (job,) = heard.left_off()
    # Those that were under way when the word reached the child; without it there are all of them.
    assert heard.tokens()[job] < LONG / 2


async def test_cancelling_a_waiter_frees_the_engine(
    engine: GenaiEngine, prompts: PromptBuilder, cases: dict[str, Case]
) -> None:
    """A task that is cancelled while it waits for a token, or in the queue, gives its place back."""
    heard = listen(engine)
    started = asyncio.Event()

    async def ask() -> None:
        async with contextlib.aclosing(engine.generate(endless(prompts, cases))) as events:
            async for _ in events:
                started.set()

    running, queued = asyncio.create_task(ask()), asyncio.create_task(ask())
    await started.wait()
    for task in (queued, running):
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert len(await tokens_of(engine, cases["text alone"].request(prompts, tokens=3))) == 3
    (job,) = heard.left_off()
    assert len(heard.prompts_read()) == 2  # the one in the queue never ran
    assert heard.tokens().get(job, 0) < LONG / 2


async def test_signals_to_the_group_do_not_end_the_child(
    engine: GenaiEngine, prompts: PromptBuilder, cases: dict[str, Case]
) -> None:
    """Ctrl-C and a supervisor's SIGTERM reach the child, too; it works on until its parent says otherwise."""
    pid = engine.child_pid
    assert pid is not None
    async with contextlib.aclosing(engine.generate(cases["one image"].request(prompts, tokens=TOKENS))) as events:
        await anext(events)
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGINT)
        drawn = [event.token_id async for event in events if isinstance(event, TokenDrawn)]
    assert drawn == cases["one image"].greedy
    assert engine.child_pid == pid


async def test_a_killed_child_is_replaced(bundle: Bundle, prompts: PromptBuilder, cases: dict[str, Case]) -> None:
    """SIGKILL: the running request gets UNAVAILABLE, the waiting one is answered by the next child; both are told."""
    long = endless(prompts, cases)
    short = cases["text alone"].request(prompts, tokens=3)
    engine = genai(bundle)
    async with running(engine) as told:
        expected = await tokens_of(engine, short)
        async with contextlib.aclosing(engine.generate(long)) as events:
            assert isinstance(await anext(events), Prefilled)
            assert isinstance(await anext(events), TokenDrawn)
            waiting = asyncio.create_task(tokens_of(engine, short))
            await asyncio.sleep(0)  # it takes its place in the queue
            first = engine.child_pid
            assert first is not None
            os.kill(first, signal.SIGKILL)
            with pytest.raises(ServiceError) as caught:
                [event async for event in events]
        assert (caught.value.code, caught.value.reason) == (Code.UNAVAILABLE, "ENGINE_LOST")
        assert caught.value.retry_after is not None
        assert await told.get() is False
        assert not engine.ready
        with pytest.raises(ServiceError, match="being started again"):
            await collect(engine, short)
        assert await told.get() is True
        assert await waiting == expected
        assert engine.child_pid != first


async def test_stop_ends_the_child(bundle: Bundle) -> None:
    """No process is left behind."""
    engine = genai(bundle)
    async with running(engine):
        pid = engine.child_pid
        assert pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert engine.child_pid is None


async def test_a_bundle_that_the_library_cannot_run_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    """Families whose graphs have inputs that the library does not give are exported without its configuration."""
    shutil.copytree(bundle.decoder_dir, tmp_path / "decoder", ignore=shutil.ignore_patterns("genai_config.json"))
    engine = GenaiEngine(WorkerConfig(str(tmp_path / "decoder"), "cpu", 1, bundle.feature_width, {}))
    with pytest.raises(EngineError, match="use --engine batch"):
        await engine.start(lambda _: None)
