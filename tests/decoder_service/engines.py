"""Both engines on one bundle, and what tests ask of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, Literal

import numpy as np

from decoder_service.engine import Engine, EngineEvent, EngineRequest, FeatureRows, SamplingParams, TokenDrawn
from decoder_service.engine.batching.engine import BatchEngine
from decoder_service.engine.batching.worker import BatchConfig
from decoder_service.engine.genai.engine import GenaiEngine
from decoder_service.engine.genai.messages import WorkerConfig
from decoder_service.families.registry import family_of
from decoder_service.request.prompt import PromptBuilder
from serving.bundle import Bundle
from tests.decoder_service.cases import Case

EngineName = Literal["batch", "genai"]
ENGINES: tuple[EngineName, ...] = ("batch", "genai")
LONG = 3000


def make_engine(name: EngineName, bundle: Bundle, **options: Any) -> BatchEngine | GenaiEngine:
    """An engine that has not been started; `options` are the batch engine's."""
    if name == "genai":
        no_media = family_of(bundle).lay_out((), (), lambda _: ())
        return GenaiEngine(WorkerConfig(str(bundle.decoder_dir), "cpu", 1, bundle.feature_width, no_media.inputs))
    return BatchEngine(BatchConfig(bundle, **{"threads": 1, "context_length": bundle.context_length, **options}))


@contextlib.asynccontextmanager
async def running(engine: BatchEngine | GenaiEngine) -> AsyncIterator[asyncio.Queue[bool]]:
    """Runs an engine for as long as a block runs; gives what it tells about being ready."""
    told: asyncio.Queue[bool] = asyncio.Queue()
    await engine.start(told.put_nowait)
    try:
        yield told
    finally:
        await engine.stop()


async def collect(engine: Engine, request: EngineRequest) -> list[EngineEvent]:
    """All events of a request."""
    async with contextlib.aclosing(engine.generate(request)) as events:
        return [event async for event in events]


async def tokens_of(engine: Engine, request: EngineRequest) -> list[int]:
    """The tokens of a request."""
    return [event.token_id for event in await collect(engine, request) if isinstance(event, TokenDrawn)]


async def first_token(events: AsyncIterator[EngineEvent]) -> None:
    """Read until the answer has begun."""
    while not isinstance(await anext(events), TokenDrawn):
        pass


def endless(prompts: PromptBuilder, cases: dict[str, Case]) -> EngineRequest:
    """A request that takes many seconds, none of which is waited for."""
    return cases["one image"].request(prompts, tokens=LONG)


def sampled(seed: int, top_k: int = 0) -> SamplingParams:
    """Sampling that is far from greedy."""
    return SamplingParams(1.0, 0.95, top_k, seed)


def text_request(token_ids: list[int], tokens: int, sampling: SamplingParams | None = None) -> EngineRequest:
    """A prompt without media."""
    return EngineRequest(
        request_id="test",
        token_ids=np.array(token_ids, np.int32),
        features=FeatureRows.of(),
        positions=np.tile(np.arange(len(token_ids) + 1), (3, 1)),
        media=(),
        sampling=sampling or SamplingParams(),
        max_new_tokens=tokens,
        stop_token_ids=frozenset(),
    )
