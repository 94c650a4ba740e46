"""What every engine does, on both: transformers' tokens, in order, and freed at once."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
import torch

from decoder_service.engine import (
    Engine,
    EngineError,
    EngineFinished,
    EngineRequest,
    FeatureRows,
    FinishReason,
    Prefilled,
    SamplingParams,
    TokenDrawn,
)
from decoder_service.request.prompt import PromptBuilder
from serving.bundle import Bundle
from serving.errors import Code, ServiceError
from tests.decoder_service.cases import TOKENS, TURNS, Case
from tests.decoder_service.engines import (
    ENGINES,
    EngineName,
    collect,
    endless,
    first_token,
    make_engine,
    running,
    sampled,
    tokens_of,
)
from tests.threads import one_thread

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=ENGINES)
async def engine(request: pytest.FixtureRequest, bundle: Bundle) -> AsyncIterator[Engine]:
    """Each engine in turn, for the tests that leave it as it was."""
    engine = make_engine(request.param, bundle)
    async with running(engine):
        yield engine


@pytest.mark.parametrize("name", TURNS)
async def test_greedy_tokens_equal_transformers(
    engine: Engine, prompts: PromptBuilder, cases: dict[str, Case], name: str
) -> None:
    """24 greedy tokens are those of transformers in fp32."""
    assert await tokens_of(engine, cases[name].request(prompts, tokens=TOKENS)) == cases[name].greedy


@pytest.mark.parametrize("name", ["one image", "two images", "video"])
async def test_wrong_features_give_other_tokens(
    engine: Engine,
    bundle: Bundle,
    prompts: PromptBuilder,
    cases: dict[str, Case],
    name: str,
) -> None:
    """Negative control: with DeepStack's part zeroed, or the images in another order, the check above fails."""
    request = cases[name].request(prompts, tokens=TOKENS)
    expected = cases[name].greedy
    hidden = bundle.text.hidden_size
    arrays = request.features.arrays
    flat = FeatureRows.of(*(np.concatenate([rows[:, :hidden], 0 * rows[:, hidden:]], axis=1) for rows in arrays))
    assert await tokens_of(engine, dataclasses.replace(request, features=flat)) != expected
    turned = FeatureRows.of(*(np.ascontiguousarray(rows[::-1]) for rows in reversed(arrays)))
    assert await tokens_of(engine, dataclasses.replace(request, features=turned)) != expected


async def test_events_come_in_order(engine: Engine, prompts: PromptBuilder, cases: dict[str, Case]) -> None:
    """Prefilled, then tokens, then finished for length; timings are not negative."""
    first, *middle, last = await collect(engine, cases["text alone"].request(prompts, tokens=5))
    assert isinstance(first, Prefilled)
    assert first.queue_seconds >= 0
    assert first.prefill_seconds > 0
    assert [type(event) for event in middle] == [TokenDrawn] * 5
    assert last == EngineFinished(FinishReason.LENGTH)


async def test_a_stop_token_is_the_last(engine: Engine, prompts: PromptBuilder, cases: dict[str, Case]) -> None:
    """A stop token is reported, ends the answer, and gives the reason."""
    request = cases["one image"].request(prompts, tokens=TOKENS)
    greedy = await tokens_of(engine, request)
    stop = greedy[5]
    events = await collect(engine, dataclasses.replace(request, stop_token_ids=frozenset({stop})))
    assert [event.token_id for event in events[1:-1]] == greedy[: greedy.index(stop) + 1]  # type: ignore[union-attr]
    assert events[-1] == EngineFinished(FinishReason.STOP)


async def test_a_stop_token_waits_for_the_fewest_tokens(
    engine: Engine, prompts: PromptBuilder, cases: dict[str, Case]
) -> None:
    """The likeliest token is passed over while it would end the answer, and ends it afterwards."""
    request = cases["one image"].request(prompts, tokens=TOKENS, sampling=SamplingParams(min_tokens=4))
    first = (await tokens_of(engine, cases["one image"].request(prompts, tokens=1)))[0]
    biased = dataclasses.replace(request.sampling, logit_bias={first: 100.0})
    request = dataclasses.replace(request, sampling=biased, stop_token_ids=frozenset({first}))
    tokens = await tokens_of(engine, request)
    assert first not in tokens[:4]
    assert tokens[4:] == [first]


async def test_a_seed_repeats(engine: Engine, prompts: PromptBuilder, cases: dict[str, Case]) -> None:
    """The same seed gives the same tokens, another seed others, and one token to choose from is greedy."""
    case = cases["one image"]
    first = await tokens_of(engine, case.request(prompts, tokens=TOKENS, sampling=sampled(1)))
    assert await tokens_of(engine, case.request(prompts, tokens=TOKENS, sampling=sampled(1))) == first
    assert await tokens_of(engine, case.request(prompts, tokens=TOKENS, sampling=sampled(2))) != first
    greedy = await tokens_of(engine, case.request(prompts, tokens=TOKENS))
    assert await tokens_of(engine, case.request(prompts, tokens=TOKENS, sampling=sampled(1, top_k=1))) == greedy


async def test_penalties_and_bias_change_the_answer(
    engine: Engine, prompts: PromptBuilder, cases: dict[str, Case]
) -> None:
    """Repetition is the reference's own penalty; a bias decides; both engines draw with the same sampler."""
    case = cases["one image"]
    with one_thread(), torch.inference_mode():
        case.reference.model.model.rope_deltas = None
        out = case.reference.model.generate(
            **case.inputs.keywords(),
            max_new_tokens=TOKENS,
            min_new_tokens=TOKENS,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            eos_token_id=None,
            repetition_penalty=1.3,
        )
    expected = out[0, case.inputs.input_ids.shape[1] :].tolist()
    assert expected != case.greedy
    penalised = SamplingParams(repetition_penalty=1.3)
    assert await tokens_of(engine, case.request(prompts, tokens=TOKENS, sampling=penalised)) == expected
    biased = case.request(prompts, tokens=4, sampling=SamplingParams(logit_bias={11: 1000.0}))
    assert await tokens_of(engine, biased) == [11] * 4


async def test_log_probabilities_are_those_of_transformers(
    engine: Engine, prompts: PromptBuilder, cases: dict[str, Case]
) -> None:
    """The first token's log probability and its alternatives are of transformers' logits; unasked there are none."""
    case = cases["one image"]
    expected = torch.log_softmax(case.reference.logits(case.inputs).double(), -1)
    best = torch.topk(expected, 5)
    request = case.request(prompts, tokens=2, sampling=SamplingParams(logprobs=5))
    first = next(event for event in await collect(engine, request) if isinstance(event, TokenDrawn))
    assert first.logprob == pytest.approx(expected[first.token_id].item(), abs=1e-4)
    assert [a.token_id for a in first.alternatives] == best.indices.tolist()
    assert [a.logprob for a in first.alternatives] == pytest.approx(best.values.tolist(), abs=1e-4)
    plain = await collect(engine, case.request(prompts, tokens=1))
    assert plain[1] == TokenDrawn(first.token_id)


async def test_requests_that_come_together_get_their_own_tokens(
    engine: Engine, prompts: PromptBuilder, cases: dict[str, Case]
) -> None:
    """Each gets what it gets alone, and they begin in the order in which they came.

    The batch engine lets a short prompt pass a long one that needs several steps, and how many it needs depends on how
    busy the machine is; its order is tested with the scheduler.
    """
    names = ["one image", "text alone", "video", "two images"]
    alone = [await tokens_of(engine, cases[name].request(prompts, tokens=8)) for name in names]
    begun: list[str] = []

    async def ask(name: str) -> list[int]:
        drawn: list[int] = []
        async with contextlib.aclosing(engine.generate(cases[name].request(prompts, tokens=8))) as events:
            async for event in events:
                if isinstance(event, Prefilled):
                    begun.append(name)
                elif isinstance(event, TokenDrawn):
                    drawn.append(event.token_id)
        return drawn

    assert await asyncio.gather(*(ask(name) for name in names)) == alone
    assert begun == names or (engine.info.name == "batch" and sorted(begun) == sorted(names))


async def test_closing_frees_the_engine(engine: Engine, prompts: PromptBuilder, cases: dict[str, Case]) -> None:
    """As many endless answers as run at once are closed in the middle; the request behind them runs to its end."""
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(engine.info.slots):
            events = await stack.enter_async_context(contextlib.aclosing(engine.generate(endless(prompts, cases))))
            await first_token(events)
        waiting = asyncio.create_task(tokens_of(engine, cases["text alone"].request(prompts, tokens=3)))
        await asyncio.sleep(0)  # it takes its place in the queue
    assert len(await waiting) == 3


async def test_cancelling_a_waiter_frees_the_engine(
    engine: Engine, prompts: PromptBuilder, cases: dict[str, Case]
) -> None:
    """Tasks that are cancelled while they wait for a token, or in the queue, give their places back."""
    slots = engine.info.slots
    begun = [asyncio.Event() for _ in range(slots + 2)]

    async def ask(mine: asyncio.Event) -> None:
        async with contextlib.aclosing(engine.generate(endless(prompts, cases))) as events:
            async for _ in events:
                mine.set()

    tasks = [asyncio.create_task(ask(mine)) for mine in begun]
    for mine in begun[:slots]:
        await mine.wait()
    assert not any(mine.is_set() for mine in begun[slots:])
    for task in reversed(tasks):
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert not any(mine.is_set() for mine in begun[slots:])
    assert len(await tokens_of(engine, cases["text alone"].request(prompts, tokens=3))) == 3


async def test_features_may_come_while_the_engine_has_the_request(
    engine: Engine, prompts: PromptBuilder, cases: dict[str, Case]
) -> None:
    """The answer is the same, a request behind it passes, and one that waits may be called off."""
    case = cases["two images"]

    def missing() -> EngineRequest:
        rows = FeatureRows(len(array) for array in case.features)
        return dataclasses.replace(case.request(prompts, tokens=TOKENS), features=rows)

    request, gone = missing(), missing()
    waiting = asyncio.create_task(tokens_of(engine, request))
    leaving = asyncio.create_task(tokens_of(engine, gone))
    request.features.put(1, case.features[1])
    gone.features.put(0, case.features[0])
    assert await tokens_of(engine, cases["text alone"].request(prompts, tokens=TOKENS)) == cases["text alone"].greedy
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    gone.features.put(1, case.features[1])
    assert not waiting.done()
    request.features.put(0, case.features[0])
    assert await waiting == case.greedy


async def test_a_request_that_fails_fails_alone(engine: Engine, prompts: PromptBuilder, cases: dict[str, Case]) -> None:
    """What cannot be computed becomes INTERNAL for that request; one beside it and the next one are answered."""
    good = cases["one image"].request(prompts, tokens=TOKENS)
    rows = good.features.arrays[0]
    bad = dataclasses.replace(good, features=FeatureRows.of(rows[:-1]))  # a row too few for the placeholders
    poisoned = dataclasses.replace(good, features=FeatureRows.of(np.full_like(rows, np.nan)))
    beside = asyncio.create_task(tokens_of(engine, good))
    for request in (bad, poisoned):
        with pytest.raises(ServiceError) as caught:
            await collect(engine, request)
        assert (caught.value.code, caught.value.reason) == (Code.INTERNAL, "ENGINE_FAILED")
    assert await beside == cases["one image"].greedy
    assert await tokens_of(engine, good) == cases["one image"].greedy


@pytest.mark.parametrize("name", ENGINES)
async def test_stop_fails_what_is_left(
    bundle: Bundle, prompts: PromptBuilder, cases: dict[str, Case], name: EngineName
) -> None:
    """Running and waiting requests get UNAVAILABLE, as those do that come later; nobody is told of readiness."""
    engine = make_engine(name, bundle, slots=1)
    async with running(engine) as told:
        asked = [asyncio.create_task(collect(engine, endless(prompts, cases))) for _ in range(2)]
        await asyncio.sleep(0)
        await engine.stop()
        for task in asked:
            with pytest.raises(ServiceError) as caught:
                await task
            assert caught.value.code is Code.UNAVAILABLE
        assert not engine.ready
        with pytest.raises(ServiceError) as caught:
            await collect(engine, cases["text alone"].request(prompts, tokens=1))
        assert caught.value.code is Code.UNAVAILABLE
        assert told.empty()


@pytest.mark.parametrize("name", ENGINES)
async def test_a_model_that_does_not_load(bundle: Bundle, tmp_path: Path, name: EngineName) -> None:
    """A bundle without its graphs is an error of one sentence."""
    empty = bundle.model_copy()
    empty._root = tmp_path
    engine = make_engine(name, empty)
    with pytest.raises(EngineError, match="cannot be loaded"):
        await engine.start(lambda _: None)
    await engine.stop()
    assert not engine.ready
