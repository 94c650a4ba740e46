"""Metrics: what Prometheus is told of a request is what became of it."""

from __future__ import annotations

import contextlib
import time

from prometheus_client import REGISTRY

from decoder_service.engine import SamplingParams, TokenDrawn
from decoder_service.request.generation import Generation
from decoder_service.request.opening import Opening
from decoder_service.request.prompt import PromptBuilder
from decoder_service.request.session import Delta, Finished, open_session
from serving.bundle import Bundle
from tests.decoder_service.cases import Case
from tests.decoder_service.scripted import ScriptedEngine, scripted_decoder

HISTOGRAMS = ("queue", "time_to_first_token", "time_per_output_token")


def read() -> dict[str, float]:
    """All that is told, by short names."""

    def value(name: str, **labels: str) -> float:
        return REGISTRY.get_sample_value(f"triptych_{name}", labels) or 0.0

    return {
        "waiting": value("requests", state="waiting"),
        "answering": value("requests", state="answering"),
        "computed": value("prompt_tokens_total", source="computed"),
        "cache": value("prompt_tokens_total", source="cache"),
        "completion": value("completion_tokens_total"),
        **{name: value(f"{name}_seconds_count") for name in HISTOGRAMS},
    }


async def test_a_request_is_counted_from_its_coming_to_its_going(
    bundle: Bundle, prompts: PromptBuilder, cases: dict[str, Case]
) -> None:
    """It waits, answers and is gone; its tokens are those of its usage."""
    decoder = scripted_decoder(bundle, prompts, ScriptedEngine([TokenDrawn(65)] * 3, cached_tokens=2))
    before = read()
    opening = Opening("r-1", cases["text alone"].messages, Generation(SamplingParams()))
    states = []
    async with open_session(decoder, opening, arrived=time.perf_counter()) as session:
        states.append(read())
        await session.start()
        async for event in session.events():
            if isinstance(event, Delta) and event.token_ids:
                states.append(read())
            if isinstance(event, Finished):
                usage = event.usage
    assert [state["waiting"] - before["waiting"] for state in states] == [1, 0, 0, 0]
    assert [state["answering"] - before["answering"] for state in states] == [0, 1, 1, 1]
    told = {name: value - before[name] for name, value in read().items()}
    assert told == {
        "waiting": 0,
        "answering": 0,
        "computed": usage.prompt_tokens - 2,
        "cache": 2,
        "completion": 3,
        **dict.fromkeys(HISTOGRAMS, 1),
    }


async def test_one_that_is_left_is_counted_out(bundle: Bundle, prompts: PromptBuilder, cases: dict[str, Case]) -> None:
    """Whoever leaves after one token leaves nothing in the gauge, and no answer that was never whole."""
    decoder = scripted_decoder(bundle, prompts, ScriptedEngine([TokenDrawn(65)] * 3))
    before = read()
    opening = Opening("r-1", cases["text alone"].messages, Generation(SamplingParams()))
    async with (
        open_session(decoder, opening, arrived=time.perf_counter()) as session,
        contextlib.aclosing(session.events()) as events,
    ):
        await session.start()
        async for event in events:
            if isinstance(event, Delta):
                break
    told = {name: value - before[name] for name, value in read().items()}
    assert (told["waiting"], told["answering"], told["completion"]) == (0, 0, 1)
    assert told["time_per_output_token"] == 0
