"""The engine: transformers' tokens, in order, and freed at once."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
from collections.abc import AsyncIterator

import numpy as np
import pytest
import pytest_asyncio

from decoder_service.engine import (
    EngineError,
    EngineEvent,
    EngineFinished,
    EngineRequest,
    FinishReason,
    Prefilled,
    SamplingParams,
    TokenDrawn,
)
from decoder_service.engine.genai import GenaiEngine
from decoder_service.engine.messages import WorkerConfig
from decoder_service.prompt import PromptBuilder
from serving.bundle import Bundle
from serving.errors import Code, ServiceError
from tests.decoder_service.cases import TOKENS, TURNS, Case
from tests.decoder_service.spy import listen

pytestmark = pytest.mark.asyncio(loop_scope="module")

LONG = 3000


def worker_config(bundle: Bundle) -> WorkerConfig:
    """The engine's configuration for a bundle."""
    return WorkerConfig(str(bundle.decoder_dir), "cpu", 1, bundle.feature_width)


@contextlib.asynccontextmanager
async def running_engine(bundle: Bundle) -> AsyncIterator[tuple[GenaiEngine, asyncio.Queue[bool]]]:
    """An engine, and what it tells about being ready."""
    told: asyncio.Queue[bool] = asyncio.Queue()
    engine = GenaiEngine(worker_config(bundle))
    await engine.start(told.put_nowait)
    try:
        yield engine, told
    finally:
        await engine.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(bundle: Bundle) -> AsyncIterator[GenaiEngine]:
    """One engine for the tests that leave it as it was."""
    async with running_engine(bundle) as (engine, _):
        yield engine


async def collect(engine: GenaiEngine, request: EngineRequest) -> list[EngineEvent]:
    """All events of a request."""
    async with contextlib.aclosing(engine.generate(request)) as events:
        return [event async for event in events]


async def tokens_of(engine: GenaiEngine, request: EngineRequest) -> list[int]:
    """The tokens of a request."""
    return [event.token_id for event in await collect(engine, request) if isinstance(event, TokenDrawn)]


def endless(prompts: PromptBuilder, cases: dict[str, Case]) -> EngineRequest:
    """A request that takes many seconds, none of which is waited for."""
    return cases["one image"].request(prompts, tokens=LONG)


def sampled(seed: int, top_k: int = 0) -> SamplingParams:
    """Sampling that is far from greedy."""
    return SamplingParams(1.0, 0.95, top_k, seed)


@pytest.mark.parametrize("name", TURNS)
async def test_greedy_tokens_equal_transformers(
    engine: GenaiEngine, prompts: PromptBuilder, cases: dict[str, Case], name: str
) -> None:
    """24 greedy tokens are those of transformers in fp32."""
    assert await tokens_of(engine, cases[name].request(prompts, tokens=TOKENS)) == cases[name].greedy


@pytest.mark.parametrize("name", ["one image", "two images", "video"])
async def test_wrong_features_give_other_tokens(
    engine: GenaiEngine,
    bundle: Bundle,
    prompts: PromptBuilder,
    cases: dict[str, Case],
    name: str,
) -> None:
    """Negative control: with DeepStack's part zeroed, or the images in another order, the check above fails."""
    request = cases[name].request(prompts, tokens=TOKENS)
    expected = cases[name].greedy
    hidden = bundle.text.hidden_size
    flat = tuple(np.concatenate([rows[:, :hidden], 0 * rows[:, hidden:]], axis=1) for rows in request.features)
    assert await tokens_of(engine, dataclasses.replace(request, features=flat)) != expected
    turned = tuple(np.ascontiguousarray(rows[::-1]) for rows in reversed(request.features))
    assert await tokens_of(engine, dataclasses.replace(request, features=turned)) != expected


async def test_events_come_in_order(engine: GenaiEngine, prompts: PromptBuilder, cases: dict[str, Case]) -> None:
    """Prefilled, then tokens, then finished for length; timings are not negative."""
    first, *middle, last = await collect(engine, cases["text alone"].request(prompts, tokens=5))
    assert isinstance(first, Prefilled)
    assert first.queue_seconds >= 0
    assert first.prefill_seconds > 0
    assert [type(event) for event in middle] == [TokenDrawn] * 5
    assert last == EngineFinished(FinishReason.LENGTH)


async def test_a_stop_token_is_the_last(engine: GenaiEngine, prompts: PromptBuilder, cases: dict[str, Case]) -> None:
    """A stop token is reported, ends the answer, and gives the reason."""
    request = cases["one image"].request(prompts, tokens=TOKENS)
    greedy = await tokens_of(engine, request)
    stop = greedy[5]
    events = await collect(engine, dataclasses.replace(request, stop_token_ids=frozenset({stop})))
    assert [event.token_id for event in events[1:-1]] == greedy[: greedy.index(stop) + 1]  # type: ignore[union-attr]
    assert events[-1] == EngineFinished(FinishReason.STOP)


async def test_a_seed_repeats(engine: GenaiEngine, prompts: PromptBuilder, cases: dict[str, Case]) -> None:
    """The same seed gives the same tokens, another seed others, and one token to choose from is greedy."""
    case = cases["one image"]
    first = await tokens_of(engine, case.request(prompts, tokens=TOKENS, sampling=sampled(1)))
    assert await tokens_of(engine, case.request(prompts, tokens=TOKENS, sampling=sampled(1))) == first
    assert await tokens_of(engine, case.request(prompts, tokens=TOKENS, sampling=sampled(2))) != first
    greedy = await tokens_of(engine, case.request(prompts, tokens=TOKENS))
    assert await tokens_of(engine, case.request(prompts, tokens=TOKENS, sampling=sampled(1, top_k=1))) == greedy


async def test_requests_are_served_in_order(
    engine: GenaiEngine, prompts: PromptBuilder, cases: dict[str, Case]
) -> None:
    """Requests that come together are answered one after the other in their order, each with its own tokens."""
    names = ["one image", "text alone", "video", "two images"]
    alone = [await tokens_of(engine, cases[name].request(prompts, tokens=8)) for name in names]
    ended: list[str] = []

    async def ask(name: str) -> list[int]:
        tokens = await tokens_of(engine, cases[name].request(prompts, tokens=8))
        ended.append(name)
        return tokens

    assert await asyncio.gather(*(ask(name) for name in names)) == alone
    assert ended == names


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


async def test_a_request_that_fails_fails_alone(
    engine: GenaiEngine, prompts: PromptBuilder, cases: dict[str, Case]
) -> None:
    """What the library refuses becomes INTERNAL for that request; the next one is answered by the same process."""
    pid = engine.child_pid
    good = cases["one image"].request(prompts, tokens=3)
    bad = dataclasses.replace(good, features=(good.features[0][:-1],))  # a row too few for the placeholders
    with pytest.raises(ServiceError) as caught:
        await collect(engine, bad)
    assert (caught.value.code, caught.value.reason) == (Code.INTERNAL, "ENGINE_FAILED")
    poisoned = dataclasses.replace(good, features=(np.full_like(good.features[0], np.nan),))
    with pytest.raises(ServiceError):
        await collect(engine, poisoned)
    assert len(await tokens_of(engine, good)) == 3
    assert engine.child_pid == pid


async def test_a_killed_child_is_replaced(bundle: Bundle, prompts: PromptBuilder, cases: dict[str, Case]) -> None:
    """SIGKILL: the running request gets UNAVAILABLE, the waiting one is answered by the next child; both are told."""
    long = endless(prompts, cases)
    short = cases["text alone"].request(prompts, tokens=3)
    async with running_engine(bundle) as (engine, told):
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


async def test_stop_fails_what_is_left(bundle: Bundle, prompts: PromptBuilder, cases: dict[str, Case]) -> None:
    """Stopping ends the child; running and waiting requests get UNAVAILABLE."""
    long = endless(prompts, cases)
    async with running_engine(bundle) as (engine, told):
        pid = engine.child_pid
        assert pid is not None
        asked = [asyncio.create_task(collect(engine, long)) for _ in range(2)]
        await asyncio.sleep(0)
        await engine.stop()
        for task in asked:
            with pytest.raises(ServiceError) as caught:
                await task
            assert caught.value.code is Code.UNAVAILABLE
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        assert told.empty()


async def test_a_model_that_does_not_load(bundle: Bundle) -> None:
    """A directory without a model is an error of one sentence, and leaves no process behind."""
    engine = GenaiEngine(dataclasses.replace(worker_config(bundle), model_dir=str(bundle.vision_dir)))
    with pytest.raises(EngineError, match="cannot be loaded"):
        await engine.start(lambda _: None)
    await engine.stop()
    assert engine.child_pid is None
