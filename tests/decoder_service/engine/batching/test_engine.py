"""The batch engine as a whole: its thread, its memory over thousands of requests, and what it refuses."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import itertools
import threading
from pathlib import Path

import numpy as np
import psutil
import pytest
import structlog

from decoder_service.engine import (
    EngineError,
    EngineFinished,
    FeatureRows,
    Prefilled,
    Prefilling,
    SamplingParams,
    TokenDrawn,
)
from decoder_service.engine.batching import worker
from decoder_service.engine.batching.engine import BatchEngine
from decoder_service.engine.batching.scheduler import LEAST_AHEAD
from decoder_service.engine.batching.stepper import Stepper
from decoder_service.engine.onnx import runner as runner_module
from decoder_service.engine.onnx.runner import Runner
from decoder_service.request.prompt import PromptBuilder
from serving.bundle import Bundle
from serving.errors import Code, ServiceError
from tests.decoder_service.cases import TOKENS, Case, named, preceded
from tests.decoder_service.engines import (
    collect,
    endless,
    first_token,
    make_engine,
    running,
    text_request,
    tokens_of,
)

MIB = 1 << 20


def batch(bundle: Bundle, **options: object) -> BatchEngine:
    """The engine under test."""
    engine = make_engine("batch", bundle, **options)
    assert isinstance(engine, BatchEngine)
    return engine


async def test_answers_run_side_by_side(bundle: Bundle, prompts: PromptBuilder, cases: dict[str, Case]) -> None:
    """All slots are busy with endless answers at once, and each of them moves."""
    engine = batch(bundle, slots=3)
    async with running(engine), contextlib.AsyncExitStack() as stack:
        answers = [
            await stack.enter_async_context(contextlib.aclosing(engine.generate(endless(prompts, cases))))
            for _ in range(3)
        ]
        for events in answers:
            await first_token(events)
        for events in answers:
            assert isinstance(await anext(events), TokenDrawn)


async def test_tokens_do_not_wait_for_what_is_read_beside_them(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a step has drawn, an answer's end included, is told before the prompts of the same step are read."""
    original, calls, read_on = Stepper.prefill, itertools.count(1), threading.Event()

    def prefill(self: Stepper) -> None:
        if next(calls) == 3:  # the first read the prompt and drew a token; before this one the third was drawn
            read_on.wait(60)
        original(self)

    monkeypatch.setattr(Stepper, "prefill", prefill)
    engine = batch(bundle)
    async with running(engine):
        try:
            async with asyncio.timeout(30):
                events = await collect(engine, text_request([1, 2], 3))
        finally:
            read_on.set()
        assert isinstance(events[-1], EngineFinished)


async def test_a_second_question_is_found_in_the_cache(
    bundle: Bundle, prompts: PromptBuilder, cases: dict[str, Case]
) -> None:
    """Where media have keys the whole prompt but its last token is found again; with the cache off, or no keys, not."""
    request = named(cases["one image"].request(prompts, tokens=3), "picture")
    unnamed = named(request)
    size = request.token_ids.size
    before_the_picture = request.token_ids.tolist().index(bundle.media_tokens.image)
    for options, asked, expected in (
        ({}, request, size - 1),
        ({}, unnamed, before_the_picture if before_the_picture >= 16 else 0),
        ({"cached_prompts": 0}, request, 0),
    ):
        engine = batch(bundle, **options)
        async with running(engine):
            first = await collect(engine, asked)
            second = await collect(engine, asked)
        prefilled = [events[0] for events in (first, second)]
        assert all(isinstance(event, Prefilled) for event in prefilled)
        assert [event.cached_tokens for event in prefilled] == [0, expected]  # type: ignore[union-attr]
        assert second[1:] == first[1:]


class Cores:
    """Cores as the test wants them, and how often somebody looked."""

    def __init__(self) -> None:
        self.spare = False
        self.looks = 0

    def look(self) -> bool:
        self.looks += 1
        return self.spare

    def forget(self) -> None: ...


async def test_a_prompt_is_read_ahead_once_cores_are_idle(
    bundle: Bundle, prompts: PromptBuilder, cases: dict[str, Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is read while others keep them busy; when they cease to, it is without anybody saying so."""
    cores = Cores()
    monkeypatch.setattr(worker, "SpareCores", lambda: cores)
    case = cases["two images"]
    request = dataclasses.replace(
        preceded(case.request(prompts, tokens=4), [20] * LEAST_AHEAD),
        features=FeatureRows(len(array) for array in case.features),
        report_progress=True,
    )
    engine = batch(bundle, cached_prompts=0)
    async with running(engine):
        expected = await tokens_of(engine, dataclasses.replace(request, features=FeatureRows.of(*case.features)))
        assert cores.looks == 0
        async with contextlib.aclosing(engine.generate(request)) as events:
            first = asyncio.ensure_future(anext(events))
            async with asyncio.timeout(20):
                while cores.looks < 3:  # noqa: ASYNC110  # the thread tells nobody
                    await asyncio.sleep(0.01)
            assert not first.done()
            cores.spare = True
            told = await first
            assert isinstance(told, Prefilling)
            assert LEAST_AHEAD <= told.done < told.total
            for index, array in enumerate(case.features):
                request.features.put(index, array)
            assert [event.token_id async for event in events if isinstance(event, TokenDrawn)] == expected


async def test_what_never_fits_is_refused(bundle: Bundle) -> None:
    """The context is no longer than the memory holds; what would pass it is refused at once, and the rest is served."""
    text = bundle.text
    token = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * 4
    engine = batch(bundle, kv_bytes=token * 256 + 100)
    async with running(engine):
        assert engine.info.max_tokens == 256
        with pytest.raises(ServiceError) as caught:
            await collect(engine, text_request([1] * 200, 57))
        assert (caught.value.code, caught.value.reason) == (Code.RESOURCE_EXHAUSTED, "PROMPT_TOO_LONG")
        # Two that fill the memory each: the second waits for the first.
        both = await asyncio.gather(*(tokens_of(engine, text_request([n] * 200, 56)) for n in (1, 2)))
        assert [len(tokens) for tokens in both] == [56, 56]


@pytest.mark.parametrize(
    ("memory", "usual", "expected"), [(1 << 40, 1 << 30, 2048), (1 << 40, 1000, 2048), (MIB, 1000, 256)]
)
async def test_memory_follows_the_context(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, memory: int, usual: int, expected: int
) -> None:
    """Where no bytes are set the whole context fits, unless that takes more than half of the memory."""
    text = bundle.text
    monkeypatch.setattr(worker, "_USUAL_KV_BYTES", usual)
    monkeypatch.setattr(worker, "usable_memory", lambda: memory)
    assert 256 * 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * 4 == MIB // 2
    with structlog.testing.capture_logs() as logs:
        engine = batch(bundle, context_length=2048)
        async with running(engine):
            assert engine.info.max_tokens == expected
    told = [line for line in logs if line["event"] == "kv_cache_bytes shortens the context"]
    assert [(line["tokens"], line["wanted"]) for line in told] == ([] if expected == 2048 else [(256, 2048)])
    (ready,) = (line for line in logs if line["event"] == "engine ready")
    assert ready["kv_cache_dtype"] == "float32"


async def test_too_little_memory_is_an_error_of_one_sentence(bundle: Bundle) -> None:
    """Memory for a handful of tokens is a mistake in the settings, and said at the start."""
    with pytest.raises(EngineError, match="kv_cache_bytes has room for 0 tokens"):
        await batch(bundle, kv_bytes=1000).start(lambda _: None)


@pytest.mark.parametrize(
    "sampling", [SamplingParams(logit_bias={10**6: 1.0}), SamplingParams(logit_bias={-1: 1.0})], ids=str
)
async def test_unknown_tokens_fail_alone(bundle: Bundle, sampling: SamplingParams) -> None:
    """A token that the model does not know, in the prompt or in the bias, fails its own request."""
    engine = batch(bundle)
    async with running(engine):
        for request in (text_request([1, 2], 3, sampling), text_request([1, 10**6], 3), text_request([], 3)):
            with pytest.raises(ServiceError) as caught:
                await collect(engine, request)
            assert caught.value.code is Code.INTERNAL
        assert len(await tokens_of(engine, text_request([1, 2], 3))) == 3


async def test_two_graphs_are_loaded_where_there_are_two(
    bundle: Bundle, prompts: PromptBuilder, cases: dict[str, Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An int8 graph prefills, and the bundle's own decodes, unless `int8` is off; here it is the same graph twice."""
    graphs = {**bundle.decoder.graphs, "int8": bundle.decoder.graphs["fp32"]}
    both = bundle.model_copy(update={"decoder": bundle.decoder.model_copy(update={"graphs": graphs})})
    both._root = bundle.root
    loaded: list[str] = []
    load = Runner.load

    def noting(self: Runner, name: str, path: Path, **options: int | None) -> None:
        loaded.append(name)
        load(self, name, path, **options)

    monkeypatch.setattr(Runner, "load", noting)
    for wanted, expected in ((True, ["fp32", "int8"]), (False, ["fp32"])):
        loaded.clear()
        engine = batch(both, int8=wanted)
        async with running(engine):
            assert loaded == expected
            requests = [cases[name].request(prompts, tokens=TOKENS) for name in ("one image", "video")] * 3
            answers = await asyncio.gather(*(tokens_of(engine, request) for request in requests))
        assert answers == [cases[name].greedy for name in ("one image", "video")] * 3


async def test_measurements_are_made_once(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first start writes them beside the graphs, and the second one reads them."""
    # Else they are not stored where other processes use the cores.
    monkeypatch.setattr(worker, "Disturbance", lambda: lambda: False)
    folder = bundle.root / "measured"
    engine = batch(bundle, slots=5)
    async with running(engine):
        pass
    files = {path: path.read_text() for path in folder.iterdir()}
    engine = batch(bundle, slots=5)
    async with running(engine):
        pass
    assert {path: path.read_text() for path in folder.iterdir()} == files
    Bundle.open(bundle.root, verify=True)


async def test_a_fault_of_the_thread_turns_health(
    bundle: Bundle, prompts: PromptBuilder, cases: dict[str, Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the thread itself breaks, running requests get UNAVAILABLE; the engine is loaded anew, and says both."""
    engine = batch(bundle)
    async with running(engine) as told:

        def broken(self: Stepper) -> None:
            raise AssertionError("a mistake of ours")

        async with contextlib.aclosing(engine.generate(endless(prompts, cases))) as events:
            await first_token(events)
            with monkeypatch.context() as patch:
                patch.setattr(Stepper, "decode", broken)
                with pytest.raises(ServiceError) as caught:
                    [event async for event in events]
        assert (caught.value.code, caught.value.reason) == (Code.UNAVAILABLE, "ENGINE_LOST")
        assert await told.get() is False
        with pytest.raises(ServiceError, match="being started again"):
            await collect(engine, text_request([1, 2], 3))
        assert await told.get() is True
        assert len(await tokens_of(engine, text_request([1, 2], 3))) == 3


async def test_a_start_that_is_cancelled_leaves_nothing(bundle: Bundle) -> None:
    """Called off while it loads, it can be stopped, and a new one starts."""
    engine = batch(bundle)
    task = asyncio.create_task(engine.start(lambda _: None))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await engine.stop()
    async with running(batch(bundle)) as told:
        assert told.empty()


async def test_thousands_of_requests_leave_nothing_behind(bundle: Bundle) -> None:
    """2,000 short requests, a third of them called off somewhere: memory stays flat, and all slots come back."""
    text = bundle.text
    token = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * 4
    engine = batch(bundle, slots=6, cached_prompts=4, kv_bytes=token * 1024)
    rng = np.random.default_rng(0)
    process = psutil.Process()
    resident = []

    async def ask() -> None:
        prompt = rng.integers(0, 250, int(rng.integers(1, 60))).tolist()
        leaves = int(rng.integers(0, 8)) if rng.random() < 1 / 3 else None
        async with contextlib.aclosing(engine.generate(text_request(prompt, int(rng.integers(1, 12))))) as events:
            seen = []
            async for event in events:
                if len(seen) == leaves:
                    return
                seen.append(event)
        assert isinstance(seen[-1], EngineFinished)

    async def client(requests: int) -> None:
        for _ in range(requests):
            await ask()

    async with running(engine):
        for _ in range(5):
            await asyncio.gather(*(client(40) for _ in range(10)))
            gc.collect()
            resident.append(process.memory_info().rss)
        assert resident[-1] - resident[1] < 8 * MIB
        assert engine._calls == set()
        # All memory can be had again, for one request and for as many as there are slots.
        assert len(await tokens_of(engine, text_request([1] * 24, 1000))) == 1000
        answers = await asyncio.gather(*(tokens_of(engine, text_request([n] * 10, 100)) for n in range(6)))
        assert [len(tokens) for tokens in answers] == [100] * 6


@pytest.mark.parametrize("lacking", [True, False])
def test_bytes_are_multiplied_exactly_where_the_fast_way_is_not(monkeypatch: pytest.MonkeyPatch, lacking: bool) -> None:
    """Without VNNI graphs are opened with ONNX Runtime's exact way, and with it they are not slowed down."""
    monkeypatch.setattr(runner_module, "lacks_vnni", lambda: lacking)
    options = runner_module._options(1)
    if lacking:
        assert options.get_session_config_entry("session.x64quantprecision") == "1"
    else:
        with pytest.raises(RuntimeError, match="x64quantprecision"):
            options.get_session_config_entry("session.x64quantprecision")
