"""Log probabilities beside the text: one for each token, whatever the text waits for."""

from __future__ import annotations

import math
import time

import pytest

from decoder_service.chat import Message, Role, Text
from decoder_service.engine import SamplingParams, TokenDrawn, TokenLogprob
from decoder_service.output.pipeline import Delta
from decoder_service.request.generation import Generation
from decoder_service.request.opening import Opening
from decoder_service.request.prompt import PromptBuilder
from decoder_service.request.session import Event, Finished, open_session
from decoder_service.rpc import to_wire
from serving.bundle import Bundle
from tests.decoder_service.scripted import ScriptedEngine, scripted_decoder
from vlm.v1 import chat_pb2

HELLO = (Message(Role.USER, (Text("hello"),)),)


async def answer(
    bundle: Bundle, prompts: PromptBuilder, engine: ScriptedEngine, *, stop: tuple[str, ...] = ()
) -> list[Event]:
    """The events of an answer that the engine draws."""
    opening = Opening("r-1", HELLO, Generation(SamplingParams(logprobs=1), stop=stop))
    async with open_session(scripted_decoder(bundle, prompts, engine), opening, arrived=time.perf_counter()) as session:
        return [await session.start(), *[event async for event in session.events()]]


def drawn(token_ids: list[int], *, other: int = 65) -> list[TokenDrawn]:
    """Tokens with a log probability each, all different, and one alternative."""
    return [TokenDrawn(token, -float(n), (TokenLogprob(other, -0.5),)) for n, token in enumerate(token_ids)]


def deltas(events: list[Event]) -> list[Delta]:
    """The deltas among the events."""
    return [event for event in events if isinstance(event, Delta)]


@pytest.mark.parametrize("stop", [(), ("the end",), ("lo 😀",)], ids=["none", "never comes", "comes"])
async def test_each_token_has_its_own(bundle: Bundle, prompts: PromptBuilder, stop: tuple[str, ...]) -> None:
    """However text is held back, a delta has one position for each of its tokens, and no token goes without."""
    ids = prompts.tokenizer.encode("hello 😀 th", add_special_tokens=False)
    events = deltas(await answer(bundle, prompts, ScriptedEngine(drawn(ids)), stop=stop))
    assert all(len(delta.logprobs) == len(delta.token_ids) for delta in events)
    told = [position.chosen for delta in events for position in delta.logprobs]
    assert [token.token_id for token in told] == [token for delta in events for token in delta.token_ids]
    assert [token.logprob for token in told] == [-float(n) for n in range(len(told))]
    text = "".join(delta.text for delta in events)
    if stop == ("lo 😀",):
        assert text == "hel"
        assert b"".join(token.raw for token in told).decode() == "hello 😀"
    else:
        assert text == b"".join(token.raw for token in told).decode() == "hello 😀 th"


async def test_parts_of_a_character_have_bytes_and_no_text(bundle: Bundle, prompts: PromptBuilder) -> None:
    """A character of several tokens is in their bytes, and none of them has text of its own."""
    ids = prompts.tokenizer.encode("😀", add_special_tokens=False)
    events = deltas(await answer(bundle, prompts, ScriptedEngine(drawn(ids))))
    chosen = [position.chosen for delta in events for position in delta.logprobs]
    assert len(chosen) > 1
    assert {token.text for token in chosen} == {""}
    assert b"".join(token.raw for token in chosen).decode() == "😀"


async def test_control_tokens_have_a_name_and_no_bytes(bundle: Bundle, prompts: PromptBuilder) -> None:
    """The token that ends the turn, and one that might have, are told by name."""
    end = bundle.tokens.eos[0]
    (delta,) = deltas(await answer(bundle, prompts, ScriptedEngine(drawn([end], other=end))))
    (position,) = delta.logprobs
    assert delta.text == ""
    for token in (position.chosen, *position.top):
        assert (token.text, token.raw) == (prompts.tokenizer.convert_ids_to_tokens(end), b"")


async def test_none_are_told_where_none_are_asked_for(bundle: Bundle, prompts: PromptBuilder) -> None:
    """An engine that says none gives deltas without."""
    (delta,) = deltas(await answer(bundle, prompts, ScriptedEngine([TokenDrawn(65)])))
    assert delta.logprobs == ()


async def test_they_go_to_the_wire(bundle: Bundle, prompts: PromptBuilder) -> None:
    """Every field of a position is on the wire, also a probability of 0."""
    engine = ScriptedEngine([TokenDrawn(65, -1.5, (TokenLogprob(66, -0.25), TokenLogprob(67, -math.inf)))])
    (delta,) = deltas(await answer(bundle, prompts, engine))
    (position,) = to_wire.event(delta).event.delta.logprobs
    texts = {token: prompts.tokenizer.decode([token]) for token in (65, 66, 67)}
    assert position == chat_pb2.PositionLogprobs(
        chosen=chat_pb2.TokenLogprob(token_id=65, text=texts[65], logprob=-1.5, raw=texts[65].encode()),
        top=[
            chat_pb2.TokenLogprob(token_id=66, text=texts[66], logprob=-0.25, raw=texts[66].encode()),
            chat_pb2.TokenLogprob(token_id=67, text=texts[67], logprob=-math.inf, raw=texts[67].encode()),
        ],
    )


async def test_cached_tokens_are_counted(bundle: Bundle, prompts: PromptBuilder) -> None:
    """What the engine's cache spared is in the usage."""
    *_, finished = await answer(bundle, prompts, ScriptedEngine(drawn([65]), cached_tokens=5))
    assert isinstance(finished, Finished)
    assert to_wire.event(finished).event.finished.usage.cached_tokens == 5
