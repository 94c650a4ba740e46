"""What a session asks of the engine."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

import numpy as np
import pytest
import structlog

from decoder_service.chat import Medium, Message, Role, Text
from decoder_service.engine import EngineRequest, FinishReason, Limit, SamplingParams, TokenDrawn
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
    for repetition, length, limit in ((None, 40, None), (limits, 12, Limit.REPETITION)):
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
