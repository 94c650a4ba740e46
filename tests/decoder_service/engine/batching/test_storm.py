"""Many requests that are cancelled at any moment leave nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
import threading

import psutil
import pytest

from decoder_service.engine import EngineFinished, EngineRequest, FeatureRows, TokenDrawn
from decoder_service.engine.batching.engine import BatchEngine
from decoder_service.engine.batching.worker import BatchConfig, Worker
from decoder_service.request.prompt import PromptBuilder
from serving.bundle import Bundle
from tests.decoder_service.cases import Case

REQUESTS, AT_ONCE, TOKENS = 300, 40, 6


@pytest.fixture
def request_of(prompts: PromptBuilder, cases: dict[str, Case]) -> EngineRequest:
    """A short request with a picture."""
    return cases["one image"].request(prompts, tokens=TOKENS)


async def test_cancellations_at_any_moment_leak_nothing(
    bundle: Bundle, request_of: EngineRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hundreds of requests, most of them cancelled: before the features, in the queue, in the prefill, between tokens.

    Those that are not have the tokens of one alone; then no slot, call, task or descriptor is left.
    """
    workers: list[Worker] = []

    class Kept(Worker):
        def run(self) -> None:
            workers.append(self)
            super().run()

    monkeypatch.setattr("decoder_service.engine.batching.engine.Worker", Kept)
    engine = BatchEngine(BatchConfig(bundle=bundle, threads=1, slots=4, context_length=512, cached_prompts=2))
    await engine.start(lambda ready: None)
    process = psutil.Process()
    try:
        expected = await tokens_of(engine, request_of)
        before = (len(asyncio.all_tasks()), process.num_fds(), threading.active_count())
        rng, places = random.Random(3), asyncio.Semaphore(AT_ONCE)
        answered = await asyncio.gather(*(one(engine, request_of, rng, places) for _ in range(REQUESTS)))
        whole = [tokens for tokens in answered if tokens is not None]
        assert REQUESTS // 20 < len(whole) < REQUESTS // 2
        assert all(tokens == expected for tokens in whole)
        assert await tokens_of(engine, request_of) == expected  # the thread has handled all cancellations before it
        assert engine._calls == set()
        assert (len(asyncio.all_tasks()), process.num_fds(), threading.active_count()) == before
        scheduler = workers[0]._stepper._scheduler
        assert scheduler.tasks == []
        assert scheduler._slots.running == []
    finally:
        await engine.stop()


async def tokens_of(engine: BatchEngine, request: EngineRequest, most: int = TOKENS) -> list[int]:
    """The tokens of an answer, or the first of them."""
    tokens: list[int] = []
    async with contextlib.aclosing(engine.generate(request)) as events:
        async for event in events:
            if isinstance(event, TokenDrawn):
                tokens.append(event.token_id)
            if isinstance(event, EngineFinished) or len(tokens) >= most:
                break
    return tokens


async def one(
    engine: BatchEngine, request: EngineRequest, rng: random.Random, places: asyncio.Semaphore
) -> list[int] | None:
    """A request that is cancelled at a random moment; its tokens if it is not."""
    async with places:
        (rows,) = request.features.arrays
        late = rng.random() < 0.3
        features = FeatureRows([len(rows)]) if late else request.features
        task = asyncio.create_task(
            tokens_of(engine, dataclasses.replace(request, features=features), rng.randint(0, 3 * TOKENS))
        )
        for _ in range(rng.randint(0, 20)):
            await asyncio.sleep(0)
        if late and rng.random() < 0.5:
            features.put(0, rows)
            late = False
        if late or rng.random() < 0.4:
            task.cancel()
        try:
            tokens = await task
        except asyncio.CancelledError:
            return None
        return tokens if len(tokens) == TOKENS else None
