"""What the engine is asked, and what is made of its answers. Nothing here asserts how long anything took."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable

import numpy as np
import pytest

from benchmarks import decoder
from benchmarks.decoder import DecoderPlan, waits, while_all_decode
from benchmarks.errors import BenchError
from benchmarks.stream import Prompts, Stream, all_of
from decoder_service.engine import (
    EngineEvent,
    EngineFinished,
    EngineInfo,
    EngineRequest,
    FinishReason,
    Prefilled,
    TokenDrawn,
)
from serving.bundle import Bundle

PLAN = DecoderPlan(
    prompts=(8, 32),
    streams=(1, 3),
    prompt_tokens=8,
    new_tokens=12,
    arrivals=5,
    arrival_seconds=0.001,
    stall_streams=2,
    stall_prompt=48,
    repeats=2,
)


class _Engine:
    """Draws a token whenever the event loop comes round, for at most `slots` requests at once."""

    ready = True

    def __init__(self, slots: int) -> None:
        self.info = EngineInfo("fake", "none", 1, slots)
        self.requests: list[EngineRequest] = []
        self.running = 0
        self.most_running = 0
        self._places = asyncio.Semaphore(slots)

    async def start(self, set_ready: Callable[[bool], None]) -> None: ...

    async def generate(self, request: EngineRequest) -> AsyncGenerator[EngineEvent, None]:
        self.requests.append(request)
        async with self._places:
            self.running += 1
            self.most_running = max(self.most_running, self.running)
            try:
                yield Prefilled(0.0, 0.001)
                for _ in range(request.max_new_tokens):
                    await asyncio.sleep(0)
                    yield TokenDrawn(1)
                yield EngineFinished(FinishReason.LENGTH)
            finally:
                self.running -= 1

    async def stop(self) -> None: ...


async def test_everything_is_measured_that_the_plan_names(tiny: Bundle) -> None:
    """Each length and each number of streams has its result, from as many measurements as there were."""
    engine = _Engine(slots=4)
    results = await decoder.run(engine, tiny, PLAN, context_length=4096)
    assert [(p.prompt_tokens, p.seconds.count) for p in results.prefill] == [(8, 2), (32, 2)]
    assert [p.tokens_per_second for p in results.prefill] == [pytest.approx(8000), pytest.approx(32000)]
    assert [(s.streams, s.first_token_seconds.count, s.step_seconds.count) for s in results.streams] == [
        (1, 2, 2 * 11),
        (3, 6, 6 * 11),
    ]
    assert results.mixed.requests == results.mixed.first_token_seconds.count == 5
    assert (results.stall.streams, results.stall.prompt_tokens) == (2, 48)
    assert results.stall.ratio > 0
    assert engine.running == 0
    shown = "\n".join(table.text for table in decoder.tables(results))
    assert "Prefill" in shown
    assert [len(curve.points) for curve in decoder.curves(results)] == [2, 2]


async def test_streams_run_at_the_same_time(tiny: Bundle) -> None:
    """As many as the engine has places for, and with one place alone there is never a time when all of them write."""
    wide, narrow = _Engine(slots=4), _Engine(slots=1)
    wide_results = await decoder.run(wide, tiny, PLAN, context_length=4096)
    narrow_results = await decoder.run(narrow, tiny, PLAN, context_length=4096)
    assert wide.most_running >= 3
    assert wide_results.streams[1].decode_tokens_per_second is not None
    assert narrow.most_running == 1
    assert narrow_results.streams[1].decode_tokens_per_second is None
    assert narrow_results.stall.streams == 1


async def test_no_prompt_comes_twice(tiny: Bundle) -> None:
    """Prompts are of ordinary tokens and all different, so that no cache can spare one; a seed repeats them."""
    engine = _Engine(slots=4)
    await decoder.run(engine, tiny, PLAN, context_length=4096)
    asked = [request.token_ids for request in engine.requests]
    assert len({tuple(ids[:8].tolist()) for ids in asked}) == len(asked)
    control = {tiny.tokens.image, tiny.tokens.video, tiny.tokens.vision_start, tiny.tokens.vision_end, *tiny.tokens.eos}
    assert not control & {int(token) for ids in asked for token in ids}
    assert all(
        ids.dtype == np.int32 and not request.stop_token_ids
        for ids, request in zip(asked, engine.requests, strict=True)
    )
    again, other = Prompts(tiny, PLAN.seed), Prompts(tiny, PLAN.seed + 1)
    assert again.request(8, 1).token_ids.tolist() == asked[0].tolist()
    assert other.request(8, 1).token_ids.tolist() != asked[0].tolist()


async def test_a_plan_that_does_not_fit_is_refused(tiny: Bundle) -> None:
    """Before anything is asked."""
    engine = _Engine(slots=1)
    with pytest.raises(BenchError, match="needs a context of 49 tokens, and the model has 48"):
        await decoder.run(engine, tiny, PLAN, context_length=48)
    assert engine.requests == []


async def test_a_failure_ends_the_others(tiny: Bundle) -> None:
    """A request that fails fails the measurement, and no other goes on in the background."""

    class Failing(_Engine):
        async def generate(self, request: EngineRequest) -> AsyncGenerator[EngineEvent, None]:
            if len(self.requests) == 1:
                self.requests.append(request)
                raise RuntimeError("no")
            async for event in super().generate(request):
                yield event

    engine = Failing(slots=2)
    prompts = Prompts(tiny, 0)
    with pytest.raises(RuntimeError, match="no"):
        await all_of([Stream(engine, prompts.request(4, 1000)) for _ in range(2)])
    assert engine.running == 0


def test_the_rate_while_all_decode() -> None:
    """Only tokens count that came while every stream was writing."""
    assert while_all_decode([[0.0, 1.0, 2.0, 3.0, 4.0], [2.0, 3.0, 4.0, 5.0]]) == 4 / 2.0
    assert while_all_decode([[0.0, 1.0], [2.0, 3.0]]) is None
    assert while_all_decode([[1.0, 2.0, 3.0]]) == 1.0


def test_the_longest_wait_is_of_what_ran_meanwhile() -> None:
    """Waits while all wrote, and over before, count as steps; later ones do not; one that reaches in counts whole."""
    streams = [[0.0, 1.0, 2.0, 7.0, 8.0, 30.0], [0.5, 1.5, 2.5, 3.5]]
    assert waits(streams, begin=2.25, end=7.5) == ([1.0, 1.0], 5.0)
    assert waits(streams, begin=40.0, end=41.0)[1] == 0.0
