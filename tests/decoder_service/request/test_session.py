"""What a session asks of the engine."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import numpy as np
import pytest
import structlog

from decoder_service.chat import Medium, Message, RawPrompt, Role, Text
from decoder_service.engine import (
    EngineEvent,
    EngineRequest,
    FinishReason,
    Limit,
    Prefilled,
    SamplingParams,
    TokenDrawn,
)
from decoder_service.engine.supervisor import failed
from decoder_service.families.registry import family_of
from decoder_service.output.constraint import Form
from decoder_service.output.pipeline import Delta
from decoder_service.output.repetition import RepetitionLimits
from decoder_service.request.decoder import Decoder
from decoder_service.request.feature_store import Features, encoder_name, media_key
from decoder_service.request.generation import Generation
from decoder_service.request.opening import Opening
from decoder_service.request.prompt import PromptBuilder
from decoder_service.request.session import Event, Finished, open_session
from serving.bundle import Bundle
from serving.errors import ServiceError
from tests import templates
from tests.decoder_service.cases import Case, named
from tests.decoder_service.scripted import ScriptedEngine, scripted_decoder
from vlm.v1 import tensor_pb2


def with_options(message: Message, options: bytes) -> Message:
    """The message with these options for its media."""
    return Message(
        message.role,
        tuple(
            dataclasses.replace(part, options=options) if isinstance(part, Medium) else part for part in message.parts
        ),
    )


async def asked(bundle: Bundle, prompts: PromptBuilder, case: Case, options: bytes) -> EngineRequest:
    """The request that the engine is given for a conversation whose features the decoder has kept."""
    engine = ScriptedEngine([TokenDrawn(65)])
    decoder = scripted_decoder(bundle, prompts, engine)
    encoder = encoder_name(bundle.encoder_fingerprint, tensor_pb2.DATA_TYPE_UNSPECIFIED)
    for layout, rows in zip(case.layouts, case.features, strict=True):
        known = dataclasses.replace(layout, medium=dataclasses.replace(layout.medium, options=options))
        decoder.features.put(media_key(known.medium, encoder), Features(known, prompts.length(known), rows))
    messages = tuple(with_options(message, options) for message in case.messages)
    opening = Opening("r-1", messages, Generation(SamplingParams()))
    async with open_session(decoder, opening, arrived=time.perf_counter()) as session:
        assert session.intake.needed == ()
        await session.start()
        async for _ in session.events():
            pass
    (request,) = engine.requests
    return request


def keys(request: EngineRequest) -> list[str]:
    """The names of its media."""
    return [span.key for span in request.media]


@pytest.mark.parametrize("name", ["text alone", "two images", "odd video and an image"])
async def test_every_medium_is_named(bundle: Bundle, prompts: PromptBuilder, cases: dict[str, Case], name: str) -> None:
    """The engine has a name for each image and each frame, all different here, and the features that were kept."""
    case = cases[name]
    request = await asked(bundle, prompts, case, b"")
    expected = case.request(prompts, tokens=1)
    assert named(request).media == expected.media
    assert np.array_equal(request.positions, expected.positions)
    names = keys(request)
    assert len(set(names)) == len(names)
    assert "" not in names
    assert [rows.tolist() for rows in request.features.arrays] == [rows.tolist() for rows in case.features]


async def test_names_are_of_the_content(bundle: Bundle, prompts: PromptBuilder, cases: dict[str, Case]) -> None:
    """The same conversation has the same names again; with other media options it has none of them."""
    case = cases["odd video and an image"]
    first = await asked(bundle, prompts, case, b"")
    again = await asked(bundle, prompts, case, b"")
    other = await asked(bundle, prompts, case, b"\x08\x01")
    assert keys(first) == keys(again)
    assert not set(keys(first)) & set(keys(other))
    assert first.token_ids.tolist() == other.token_ids.tolist()
    assert np.array_equal(first.positions, other.positions)


@pytest.fixture(scope="module")
def thinker(bundle: Bundle) -> PromptBuilder:
    """Lays prompts out for a model that always thinks."""
    prompts = PromptBuilder.load(bundle.decoder_dir, family_of(bundle))
    prompts.tokenizer.chat_template = templates.ALWAYS
    return PromptBuilder(prompts.tokenizer, family_of(bundle))


async def events_of(decoder: Decoder, generation: Generation) -> Sequence[Event]:
    """How a question is answered."""
    asked = Opening("r-1", (Message(Role.USER, (Text("Where?"),)),), generation)
    async with open_session(decoder, asked, arrived=time.perf_counter()) as session:
        await session.start()
        return [event async for event in session.events()]


def drawn(prompts: PromptBuilder, text: str) -> list[TokenDrawn]:
    """The tokens of a text, with their log probabilities."""
    return [TokenDrawn(token, -1.0) for token in prompts.tokenizer.encode(text, add_special_tokens=False)]


@pytest.mark.parametrize(
    ("text", "reasoning", "content"),
    [("I look.\n</think>\n\nOn the left.", "I look.", "On the left."), ("I look and", "I look and", "")],
)
async def test_reasoning_comes_apart(
    bundle: Bundle, thinker: PromptBuilder, text: str, reasoning: str, content: str
) -> None:
    """What the model writes before its mark is reasoning, since the template has opened it; the tokens are counted."""
    tokens = drawn(thinker, text)
    events = await events_of(
        scripted_decoder(bundle, thinker, ScriptedEngine(tokens)), Generation(SamplingParams(logprobs=0))
    )
    *deltas, finished = events
    assert isinstance(finished, Finished)
    told = [delta for delta in deltas if isinstance(delta, Delta)]
    assert "".join(delta.reasoning for delta in told) == reasoning
    assert "".join(delta.text for delta in told) == content
    assert [token for delta in told for token in delta.token_ids] == [token.token_id for token in tokens]
    assert all(len(delta.logprobs) == len(delta.token_ids) for delta in told)
    before, mark, _ = text.partition("</think>")
    assert finished.usage.reasoning_tokens == len(drawn(thinker, before + mark))
    assert finished.usage.completion_tokens == len(tokens)


async def test_a_model_that_does_not_think_may_write_marks(bundle: Bundle, prompts: PromptBuilder) -> None:
    """They are its text."""
    engine = ScriptedEngine(drawn(prompts, "<think>a</think>b"))
    *deltas, finished = await events_of(scripted_decoder(bundle, prompts, engine), Generation(SamplingParams()))
    assert "".join(delta.text for delta in deltas if isinstance(delta, Delta)) == "<think>a</think>b"
    assert isinstance(finished, Finished)
    assert finished.usage.reasoning_tokens == 0


async def test_an_answer_in_circles_is_ended_where_it_is_asked_for(bundle: Bundle, prompts: PromptBuilder) -> None:
    """At the token that completes the last repetition, as a limit; unasked it goes on."""
    tokens = [TokenDrawn(token) for token in (5, 6, 7, 8) * 10]
    limits = RepetitionLimits(1, 8, 3)
    for repetition, length, limit in ((None, 40, Limit.CONTEXT), (limits, 12, Limit.REPETITION)):
        decoder = scripted_decoder(bundle, prompts, ScriptedEngine(tokens))
        events = await events_of(decoder, Generation(SamplingParams(), repetition=repetition))
        finished = events[-1]
        assert isinstance(finished, Finished)
        assert (finished.usage.completion_tokens, finished.limit) == (length, limit)
        assert finished.reason is FinishReason.LENGTH


async def test_who_asks_a_thinking_model_greedily_is_warned_once(
    bundle: Bundle, prompts: PromptBuilder, thinker: PromptBuilder
) -> None:
    """Not one that samples, nor one that asks a model that does not think."""

    async def warnings(who: PromptBuilder, *temperatures: float) -> int:
        decoder = scripted_decoder(bundle, who, ScriptedEngine([TokenDrawn(65)]))
        with structlog.testing.capture_logs() as logs:
            for temperature in temperatures:
                await events_of(decoder, Generation(SamplingParams(temperature=temperature)))
        return sum("greedily" in log["event"] for log in logs)

    assert await warnings(thinker, 0.6, 0.0, 0.0) == 1
    assert await warnings(thinker, 0.6) == 0
    assert await warnings(prompts, 0.0) == 0


async def test_a_form_is_of_the_content(bundle: Bundle, prompts: PromptBuilder, thinker: PromptBuilder) -> None:
    """A model that thinks may think first."""
    for who, free in ((thinker, True), (prompts, False)):
        engine = ScriptedEngine([TokenDrawn(65)])
        decoder = scripted_decoder(bundle, who, engine)
        await events_of(decoder, Generation(SamplingParams(), form=Form("choice", '["yes"]')))
        constraint = engine.requests[0].constraint
        assert constraint is not None
        # Everything but the end of the answer.
        assert (~constraint.mask()).sum() == len(decoder.model.end_tokens) if free else constraint.mask().sum() < 10


async def test_what_ends_an_answer(bundle: Bundle, prompts: PromptBuilder) -> None:
    """The model's end tokens and the request's; without the former if asked, unless the answer has a form."""
    ends = frozenset(bundle.tokens.eos)
    form = Form("choice", '["yes"]')
    for generation, expected in (
        (Generation(SamplingParams()), ends),
        (Generation(SamplingParams(), stop_token_ids=frozenset({65})), ends | {65}),
        (Generation(SamplingParams(), stop_token_ids=frozenset({65}), ignore_eos=True), {65}),
        (Generation(SamplingParams(), ignore_eos=True), frozenset()),
        (Generation(SamplingParams(), ignore_eos=True, form=form), ends),
    ):
        engine = ScriptedEngine([TokenDrawn(65), TokenDrawn(66)])
        events = await events_of(scripted_decoder(bundle, prompts, engine), generation)
        assert engine.requests[0].stop_token_ids == expected
        text = "".join(event.text for event in events if isinstance(event, Delta))
        # A stop token has no text.
        assert text.startswith(prompts.tokenizer.decode([65])) == (65 not in expected)


class Endless(ScriptedEngine):
    """Draws tokens for ever: all at once, or the first few and then none."""

    def __init__(self, *, then_none: bool) -> None:
        super().__init__()
        self.then_none = then_none
        self.closed = False

    async def generate(self, request: EngineRequest) -> AsyncGenerator[EngineEvent, None]:
        yield Prefilled(0.0, 0.0)
        try:
            for number in itertools.count():
                if self.then_none and number == 3:
                    await asyncio.Event().wait()
                yield TokenDrawn(65)
        finally:
            self.closed = True


@pytest.mark.parametrize("then_none", [False, True])
async def test_an_answer_ends_before_its_time_is_over(
    bundle: Bundle, prompts: PromptBuilder, cases: dict[str, Case], then_none: bool
) -> None:
    """What has been written by then is the answer, be the engine quick or waiting; the engine is let go."""
    engine = Endless(then_none=then_none)
    decoder = scripted_decoder(bundle, prompts, engine)
    opening = Opening("r-1", cases["text alone"].messages, Generation(SamplingParams()))
    async with open_session(decoder, opening, arrived=time.perf_counter()) as session:
        await session.start()
        until = asyncio.get_running_loop().time() + 0.1
        events = [event async for event in session.events(until=until)]
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert (finished.reason, finished.limit) == (FinishReason.LENGTH, Limit.DEADLINE)
    assert finished.usage.completion_tokens == sum(len(e.token_ids) for e in events if isinstance(e, Delta)) > 0
    assert not then_none or finished.usage.completion_tokens == 3
    assert engine.closed


async def test_before_the_first_token_the_time_is_the_callers(
    bundle: Bundle, prompts: PromptBuilder, cases: dict[str, Case]
) -> None:
    """There is no answer that could end: the caller's own deadline cancels it."""
    decoder = scripted_decoder(bundle, prompts, ScriptedEngine([TokenDrawn(65)]))
    opening = Opening("r-1", cases["text alone"].messages, Generation(SamplingParams()))
    async with open_session(decoder, opening, arrived=time.perf_counter()) as session:
        await session.start()
        events = [event async for event in session.events(until=0.0)]
    assert [len(event.token_ids) for event in events if isinstance(event, Delta)] == [1]


@pytest.mark.parametrize(
    ("asked", "clamp", "limits", "bound", "limit"),
    [
        (None, False, {}, 4096, Limit.CONTEXT),
        (None, False, {"default_max_tokens": 7}, 7, Limit.SERVER),
        (None, False, {"context_limit": Limit.KV_CACHE}, 4096, Limit.KV_CACHE),
        (5, False, {"default_max_tokens": 3}, 5, Limit.MAX_TOKENS),
        (100_000, True, {"default_max_tokens": 3}, 4096, Limit.CONTEXT),
    ],
)
async def test_the_limit_is_told(
    *,
    bundle: Bundle,
    prompts: PromptBuilder,
    cases: dict[str, Case],
    asked: int | None,
    clamp: bool,
    limits: dict[str, Any],
    bound: int,
    limit: Limit,
) -> None:
    """At the beginning how long the answer may be, at its end which limit that was; an answer that stops has none."""
    engine = ScriptedEngine([TokenDrawn(65)])
    decoder = scripted_decoder(bundle, prompts, engine, **limits)
    generation = Generation(SamplingParams(), asked, clamp_max_tokens=clamp)
    opening = Opening("r-1", cases["text alone"].messages, generation)
    for stop in ((), ("b",)):
        opening = dataclasses.replace(opening, generation=dataclasses.replace(generation, stop=stop))
        async with open_session(decoder, opening, arrived=time.perf_counter()) as session:
            started = await session.start()
            *_, finished = [event async for event in session.events()]
        expected = min(bound, 4096 - started.prompt_tokens)
        assert started.max_tokens == engine.requests[-1].max_new_tokens == expected
        assert isinstance(finished, Finished)
        assert finished.limit is (None if finished.reason is FinishReason.STOP else limit)


async def test_more_than_there_is_room_for_is_refused_unless_it_may_be_cut(
    bundle: Bundle, prompts: PromptBuilder, cases: dict[str, Case]
) -> None:
    """The number is refused by its name, where nobody said that it may be cut."""
    decoder = scripted_decoder(bundle, prompts, ScriptedEngine([TokenDrawn(65)]))
    opening = Opening("r-1", cases["text alone"].messages, Generation(SamplingParams(), 100_000))
    with pytest.raises(ServiceError, match="clamp_max_tokens") as caught:
        async with open_session(decoder, opening, arrived=time.perf_counter()):
            pass
    assert caught.value.reason == "MAX_TOKENS_TOO_LARGE"


async def test_several_answers_have_one_prompt(bundle: Bundle, prompts: PromptBuilder) -> None:
    """The others start after the first one's prefill, each with its seed, its constraint and its end."""
    engine = ScriptedEngine([TokenDrawn(65), TokenDrawn(66)])
    decoder = scripted_decoder(bundle, prompts, engine)
    form = Form("choice", '["yes", "no"]')
    events = await events_of(decoder, Generation(SamplingParams(1.0, seed=2**64 - 1), choices=2, form=form))
    first, second = engine.requests
    assert (first.sampling.seed, second.sampling.seed) == (2**64 - 1, 0)
    assert first.token_ids is second.token_ids
    assert first.features is second.features
    assert first.constraint is not second.constraint
    for choice in (0, 1):
        deltas = [event for event in events if isinstance(event, Delta) and event.choice == choice]
        assert [token for delta in deltas for token in delta.token_ids] == [65, 66]
    ends = [event for event in events if isinstance(event, Finished)]
    assert sorted(end.choice for end in ends) == [0, 1]
    assert [end.usage.completion_tokens for end in ends] == [2, 2]
    assert decoder.admission.inside == 0


class FailsLater(ScriptedEngine):
    """Fails the second request; the first never ends."""

    def __init__(self) -> None:
        super().__init__()
        self.left = 0

    async def generate(self, request: EngineRequest) -> AsyncGenerator[EngineEvent, None]:
        self.requests.append(request)
        number = len(self.requests)
        yield Prefilled(0.0, 0.0)
        if number == 2:
            raise failed()
        try:
            yield TokenDrawn(65)
            await asyncio.Event().wait()
        finally:
            self.left += 1


async def test_an_answer_that_fails_fails_all(bundle: Bundle, prompts: PromptBuilder) -> None:
    """With its error; the engine is let go, and so are the places."""
    engine = FailsLater()
    decoder = scripted_decoder(bundle, prompts, engine)
    with pytest.raises(ServiceError, match="the engine failed on this request"):
        await events_of(decoder, Generation(SamplingParams(), choices=2))
    assert (engine.left, decoder.admission.inside) == (1, 0)


async def test_every_answer_takes_a_place(bundle: Bundle, prompts: PromptBuilder) -> None:
    """Of two places one request with two answers takes both; three are never admitted."""
    decoder = scripted_decoder(bundle, prompts, ScriptedEngine([TokenDrawn(65)]))
    messages = (Message(Role.USER, (Text("hi"),)),)
    two = Opening("r-1", messages, Generation(SamplingParams(), choices=2))
    async with open_session(decoder, two, arrived=time.perf_counter()):
        assert decoder.admission.inside == 2
        with pytest.raises(ServiceError) as caught:
            await events_of(decoder, Generation(SamplingParams()))
        assert caught.value.reason == "QUEUE_FULL"
    assert decoder.admission.inside == 0
    with pytest.raises(ServiceError, match=r"generation\.n"):
        await events_of(decoder, Generation(SamplingParams(), choices=3))


async def test_after_a_raw_prompt_all_is_text(bundle: Bundle, thinker: PromptBuilder) -> None:
    """Also of a model that thinks: its marks are in the text, and nothing is reasoning."""
    engine = ScriptedEngine(drawn(thinker, "a</think>b"))
    decoder = scripted_decoder(bundle, thinker, engine)
    opening = Opening("r-1", RawPrompt("Once upon"), Generation(SamplingParams()))
    async with open_session(decoder, opening, arrived=time.perf_counter()) as session:
        started = await session.start()
        events = [event async for event in session.events()]
    assert started.prompt_tokens == len(thinker.tokenizer("Once upon").input_ids)
    assert "".join(event.text for event in events if isinstance(event, Delta)) == "a</think>b"
