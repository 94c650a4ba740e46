"""Memory that is too short for all answers changes none of them: who was parked goes on as if it had run alone."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from decoder_service.engine import EngineFinished, EngineRequest, FinishReason, Limit, Prefilled, SamplingParams
from decoder_service.engine.batching.kv import KvCache
from decoder_service.engine.onnx.runner import Runner
from decoder_service.request.prompt import PromptBuilder
from serving.bundle import Bundle
from tests.decoder_service.cases import Case, named
from tests.decoder_service.engines import text_request
from tests.decoder_service.stepping import Stepping, two_graphs

LONGEST = 150


@pytest.fixture(scope="module")
def runner(bundle: Bundle) -> Runner:
    """Two graphs."""
    return two_graphs(bundle)


@pytest.fixture(scope="module")
def requests(prompts: PromptBuilder, cases: dict[str, Case]) -> list[EngineRequest]:
    """Long answers to texts and to a picture, greedy, drawn from a seed, and with penalties that see the answer."""
    rng = np.random.default_rng(3)
    picture = named(cases["one image"].request(prompts, tokens=LONGEST), "picture")
    drawn = SamplingParams(1.0, 0.95, 50, seed=7, presence_penalty=0.5, logprobs=2)
    texts = [
        text_request(rng.integers(0, 250, length).tolist(), LONGEST, sampling)
        for length, sampling in ((3, None), (40, drawn), (70, None), (5, drawn))
    ]
    return [dataclasses.replace(picture, stop_token_ids=frozenset()), *texts]


@pytest.fixture(scope="module")
def alone(bundle: Bundle, runner: Runner, requests: list[EngineRequest]) -> list[list[int]]:
    """What each gets at rest."""
    stepping = Stepping(bundle, runner, slots=1)
    return [stepping.answer(request).tokens for request in requests]


def parks() -> dict[str, float]:
    """How often requests were parked, by what became of their keys and values."""
    return {
        how: REGISTRY.get_sample_value("triptych_parks_total", {"keys_and_values": how}) or 0.0
        for how in ("copied", "dropped")
    }


@pytest.mark.parametrize(
    ("parking", "expected"), [(100_000, {"copied"}), (0, {"dropped"}), (100, {"copied", "dropped"})]
)
def test_answers_that_outgrow_memory_are_those_at_rest(
    *,
    bundle: Bundle,
    runner: Runner,
    requests: list[EngineRequest],
    alone: list[list[int]],
    parking: int,
    expected: set[str],
) -> None:
    """Five answers in memory for two: all whole, be keys and values copied out or computed again."""
    stepping = Stepping(bundle, runner, slots=5, budget=448, growth=1, parking=parking, rooms=(30,))
    before = parks()
    jobs = [stepping.add(request) for request in requests]
    seen = 0
    while not stepping.stepper.idle:
        stepping.step()
        seen = max(seen, int(REGISTRY.get_sample_value("triptych_parked_requests") or 0))
        assert sum(slot.reserved for slot in stepping.slots.running) <= 448
    assert [stepping.answers[job].tokens for job in jobs] == alone
    assert [stepping.answers[job].finished for job in jobs] == [EngineFinished(FinishReason.LENGTH)] * 5
    assert {how for how, count in parks().items() if count > before[how]} == expected
    assert seen >= 2
    assert REGISTRY.get_sample_value("triptych_parked_requests") == 0


def test_other_keys_and_values_would_be_noticed(
    bundle: Bundle,
    runner: Runner,
    requests: list[EngineRequest],
    alone: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Negative control: where a copy comes back without its last tokens, an answer is another one."""

    def restore(self: KvCache, saved: tuple[np.ndarray, ...], slot: int) -> None:
        for buffer, kept in zip(self.buffers, saved, strict=True):
            buffer[slot, :, : kept.shape[1] // 2] = kept[:, : kept.shape[1] // 2]

    monkeypatch.setattr(KvCache, "restore", restore)
    stepping = Stepping(bundle, runner, slots=5, budget=448, growth=64, parking=100_000)
    jobs = [stepping.add(request) for request in requests]
    stepping.finish()
    assert [stepping.answers[job].tokens for job in jobs] != alone


def test_the_prompt_is_told_once(bundle: Bundle, runner: Runner, requests: list[EngineRequest]) -> None:
    """A request that is computed again tells of its prompt, and of reading it, only the first time."""
    stepping = Stepping(bundle, runner, slots=2, budget=256, growth=64, rooms=(20,))
    told: list[object] = []
    stepping.add(requests[1])
    last = stepping.add(dataclasses.replace(requests[3], report_progress=True))
    last.emit = told.append
    stepping.finish()
    assert len(last.answer) == LONGEST
    assert last.grown > 0
    assert [type(event) for event in told].count(Prefilled) == 1
    assert isinstance(told[-1], EngineFinished)
    at = next(index for index, event in enumerate(told) if isinstance(event, Prefilled))
    assert len(told) == at + 1 + LONGEST + 1


def test_an_answer_that_is_alone_and_fills_memory_says_so(
    bundle: Bundle, runner: Runner, requests: list[EngineRequest], alone: list[list[int]]
) -> None:
    """It ends with what it has, the reason is length, and the limit is the memory."""
    stepping = Stepping(bundle, runner, budget=128, growth=64)
    answer = stepping.answer(requests[1])
    assert answer.finished == EngineFinished(FinishReason.LENGTH, Limit.KV_CACHE)
    assert answer.tokens == alone[1][: len(answer.tokens)]
    assert len(answer.tokens) == 128 - requests[1].token_ids.size + 1
    assert stepping.slots.running == []


@pytest.mark.parametrize("parking", [0, 1000])
def test_one_that_is_parked_can_be_called_off(
    bundle: Bundle, runner: Runner, requests: list[EngineRequest], alone: list[list[int]], parking: int
) -> None:
    """Nothing is left of it, and the others go on as if alone."""
    stepping = Stepping(bundle, runner, slots=3, budget=384, growth=64, parking=parking)
    jobs = [stepping.add(request) for request in (requests[1], requests[2], requests[4])]
    while not stepping.scheduler.parked:
        stepping.step()
    assert stepping.scheduler.parked == [jobs[2]]
    stepping.stepper.cancel(jobs[2])
    assert REGISTRY.get_sample_value("triptych_parked_requests") == 0
    stepping.finish()
    assert [stepping.answers[job].tokens for job in jobs[:2]] == [alone[1], alone[2]]
    assert stepping.answers[jobs[2]].finished is None
    assert stepping.slots.running == []


@settings(deadline=None, max_examples=15, derandomize=True)
@given(
    visits=st.lists(
        st.tuples(st.integers(0, 4), st.integers(0, 60), st.integers(1, LONGEST), st.none() | st.integers(0, 150)),
        min_size=3,
        max_size=7,
    ),
    slots=st.sampled_from([2, 4, 7]),
    budget=st.sampled_from([320, 384, 512]),
    growth=st.sampled_from([1, 64]),
    parking=st.sampled_from([0, 200, 2000]),
    caches=st.sampled_from([None, 2]),
    room=st.sampled_from([7, 100]),
    parts=st.sampled_from([1, 1000]),
)
def test_any_schedule_gives_each_its_own_tokens(
    *,
    bundle: Bundle,
    runner: Runner,
    requests: list[EngineRequest],
    alone: list[list[int]],
    visits: list[tuple[int, int, int, int | None]],
    slots: int,
    budget: int,
    growth: int,
    parking: int,
    caches: int | None,
    room: int,
    parts: int,
) -> None:
    """Requests come and are called off at any step, short of memory: each has its own tokens, or the first of them."""
    stepping = Stepping(
        bundle,
        runner,
        slots=slots,
        budget=budget,
        growth=growth,
        parking=parking,
        caches=caches,
        rooms=(room,),
        parts=(parts,),
    )
    here = {}
    for step in itertools.count():
        if step > 60 and stepping.stepper.idle:
            break
        for index, (which, comes, tokens, leaves) in enumerate(visits):
            if comes == step:
                here[index] = stepping.add(dataclasses.replace(requests[which], max_new_tokens=tokens))
            if leaves is not None and comes + leaves == step:
                stepping.stepper.cancel(here[index])
        stepping.step()
    for index, (which, _, tokens, leaves) in enumerate(visits):
        answer = stepping.answers[here[index]]
        assert answer.error is None
        assert answer.tokens == alone[which][: len(answer.tokens)]
        assert answer.finished is not None or leaves is not None
        assert len(answer.tokens) == tokens or answer.finished is None
    assert (stepping.slots.running, stepping.scheduler.tasks) == ([], [])


def test_a_chunk_is_started_again_after_its_request_was_parked(
    bundle: Bundle, runner: Runner, requests: list[EngineRequest], alone: list[list[int]]
) -> None:
    """The parts of it that were computed are lost with the slot."""
    stepping = Stepping(bundle, runner, slots=2, budget=160, growth=1, parking=1000, parts=(1,))
    first = stepping.add(requests[1])
    while first.slot is None or first.slot.length < 63:
        stepping.step()
    second = stepping.add(dataclasses.replace(requests[3], max_new_tokens=20))
    stepping.step()
    assert second.place.length == 0
    stepping.step()
    assert stepping.scheduler.parked == [second]
    stepping.finish()
    assert [stepping.answers[job].tokens for job in (first, second)] == [alone[1], alone[3][:20]]
    read = [call.read for call in stepping.model.calls if call.read is not None]
    assert read[1:] == [(0, 70)] * 2
