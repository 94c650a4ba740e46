"""Answers, and the life of a real server."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
from collections.abc import AsyncIterator

import grpc
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from decoder_service.output.repetition import USUAL
from decoder_service.request.generation import GenerationDefaults, RecommendedSampling
from decoder_service.request.prompt import PromptBuilder
from serving.bundle import Bundle
from serving.errors import Code, ServiceError
from serving.status import from_rpc_error
from tests.decoder_service.cases import TURNS, Case
from tests.decoder_service.client import (
    ENDLESS,
    answer,
    first_delta,
    generate,
    open_request,
    opened,
    refused,
    rest_of,
    still_works,
    until_empty,
    wire_layout,
    wire_messages,
)
from tests.decoder_service.conftest import Running, Serve
from tests.reference import Reference
from vlm.v1 import chat_pb2, decoder_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(serve_decoder: Serve) -> AsyncIterator[Running]:
    """One server for the tests that leave it as it was: it keeps no features, so every test sends its own."""
    async with serve_decoder(slots=1, max_queue=2, feature_cache_bytes=0) as running:
        yield running


@pytest.mark.parametrize("name", TURNS)
async def test_answers_are_those_of_transformers(
    running: Running,
    bundle: Bundle,
    reference: Reference,
    cases: dict[str, Case],
    name: str,
) -> None:
    """Through the handshake: transformers' prompt ids, its greedy tokens and its text; usage and timings agree."""
    case = cases[name]
    got = await answer(running, case, bundle)
    started, finished = got.started.started, got.finished.finished
    assert list(started.prompt_token_ids) == case.inputs.input_ids[0].tolist()
    assert (started.request_id, started.model) == ("r-1", bundle.model.id)
    end = next((n for n, token in enumerate(cases[name].greedy, 1) if token in bundle.tokens.eos), None)
    expected = cases[name].greedy[:end]
    assert got.token_ids == expected
    assert got.text == reference.tokenizer.decode(expected, skip_special_tokens=True)
    ended = end is not None
    assert finished.reason == (chat_pb2.FINISH_REASON_STOP if ended else chat_pb2.FINISH_REASON_LENGTH)
    usage, timings = finished.usage, finished.timings
    assert usage.prompt_tokens == started.prompt_tokens == len(started.prompt_token_ids)
    assert usage.completion_tokens == len(expected)
    assert usage.media_tokens == started.media_tokens == sum(len(rows) for rows in case.features)
    assert timings.prefill_seconds > 0
    assert timings.vision_seconds == 0
    assert timings.time_to_first_token_seconds > timings.prefill_seconds


async def test_stop_strings_end_the_answer(running: Running, bundle: Bundle, cases: dict[str, Case]) -> None:
    """The answer ends before the stop string, whose tokens are reported; the reason is stop."""
    options = chat_pb2.GenerationOptions(temperature=1, max_tokens=200, seed=3)
    whole = await answer(running, cases["text alone"], bundle, options)
    stop = whole.text[20:23]
    options.stop.append(stop)
    got = await answer(running, cases["text alone"], bundle, options)
    assert got.text == whole.text[: whole.text.index(stop)]
    assert got.finished.finished.reason == chat_pb2.FINISH_REASON_STOP
    assert got.token_ids == whole.token_ids[: len(got.token_ids)]
    assert got.finished.finished.usage.completion_tokens == len(got.token_ids) < len(whole.token_ids)


async def test_seeds_repeat_over_the_wire(running: Running, bundle: Bundle, cases: dict[str, Case]) -> None:
    """The same seed gives the same answer, another one another."""

    async def ask(seed: int) -> list[int]:
        options = chat_pb2.GenerationOptions(temperature=1.5, top_p=1, top_k=0, max_tokens=16, seed=seed)
        return (await answer(running, cases["one image"], bundle, options)).token_ids

    assert await ask(1) == await ask(1)
    assert await ask(1) != await ask(2)


async def test_an_answer_may_fill_the_context(
    serve_decoder: Serve, bundle: Bundle, prompts: PromptBuilder, cases: dict[str, Case]
) -> None:
    """Without max_tokens an answer is cut to what the context leaves free."""
    case = cases["text alone"]
    free = 5
    async with serve_decoder(context_length=len(prompts.render(case.messages).token_ids) + free) as running:
        for seed in range(20):
            got = await answer(running, case, bundle, chat_pb2.GenerationOptions(temperature=2, seed=seed))
            assert len(got.token_ids) <= free
            if got.finished.finished.reason == chat_pb2.FINISH_REASON_LENGTH:
                break
        assert len(got.token_ids) == free
        assert got.started.started.max_tokens == free
        assert got.finished.finished.limit == chat_pb2.FINISH_LIMIT_CONTEXT
        options = chat_pb2.GenerationOptions(temperature=2, seed=seed, max_tokens=2000, clamp_max_tokens=True)
        cut = await answer(running, case, bundle, options)
        assert (cut.token_ids, cut.started.started.max_tokens) == (got.token_ids, free)
        assert cut.finished.finished.limit == chat_pb2.FINISH_LIMIT_CONTEXT
        model = await running.stub.GetModel(decoder_pb2.GetModelRequest())
        assert model.default_max_tokens == 16384


async def test_an_answer_ends_before_its_deadline(running: Running, bundle: Bundle, cases: dict[str, Case]) -> None:
    """Once it has begun, the client has all of it that was written, and the name of the limit, and no error."""
    events: list[chat_pb2.ChatEvent] = []
    seconds = 1.0
    while not events:  # on a busy machine the time may be over before the first token
        seconds *= 2
        with contextlib.suppress(grpc.aio.AioRpcError):
            async with generate(running, deadline=seconds) as call:
                await opened(call, open_request(cases["text alone"], ENDLESS))
                events = await rest_of(call)
    finished = events[-1].finished
    assert finished.reason == chat_pb2.FINISH_REASON_LENGTH
    if finished.usage.completion_tokens < ENDLESS.max_tokens:
        assert finished.limit == chat_pb2.FINISH_LIMIT_DEADLINE
    await still_works(running, cases["text alone"])


async def test_several_answers_take_as_many_places_and_leave_them(running: Running, cases: dict[str, Case]) -> None:
    """Three answers fill the three places, whichever of them runs; leaving ends them all."""
    three = chat_pb2.GenerationOptions(n=3)
    three.MergeFrom(ENDLESS)
    async with generate(running) as call:
        await opened(call, open_request(cases["text alone"], three))
        await first_delta(call)
        assert (await refused(running, open_request(cases["text alone"]))).reason == "QUEUE_FULL"
    await until_empty(running)
    four = await refused(running, open_request(cases["text alone"], chat_pb2.GenerationOptions(n=4)))
    assert (four.code, four.violations[0].field) == (Code.INVALID_ARGUMENT, "generation.n")
    await still_works(running, cases["text alone"])


async def test_a_full_queue_refuses(running: Running, cases: dict[str, Case]) -> None:
    """With one running and two waiting the fourth is refused at its opening, with a delay; then there is room again."""
    case = cases["one image"]
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(3):
            await opened(await stack.enter_async_context(generate(running)), open_request(case))
        error = await refused(running, open_request(cases["text alone"]))
        assert (error.code, error.reason) == (Code.RESOURCE_EXHAUSTED, "QUEUE_FULL")
        assert error.retry_after is not None
    await until_empty(running)
    await still_works(running, cases["text alone"])


async def test_a_client_that_leaves_frees_the_decoder(running: Running, cases: dict[str, Case]) -> None:
    """Cancelling in the middle of a long answer, or a deadline, ends the engine's work and gives the place back."""
    async with generate(running) as call:
        await opened(call, open_request(cases["text alone"], ENDLESS))
        await first_delta(call)
    await still_works(running, cases["text alone"])
    begun = False

    async def ask() -> None:
        nonlocal begun
        async with generate(running, deadline=0.5) as call:
            await opened(call, open_request(cases["one image"], ENDLESS))
            begun = True
            await rest_of(call)

    while not begun:  # the time may be over before the call has come to the server
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask()
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await still_works(running, cases["text alone"])
    await until_empty(running)


async def test_a_lost_engine_is_told_and_replaced(serve_decoder: Serve, cases: dict[str, Case]) -> None:
    """The engine's process is killed: UNAVAILABLE, NOT_SERVING, SERVING, and answers again."""
    async with serve_decoder(engine="genai") as running:
        health = health_pb2_grpc.HealthStub(running.channel)
        watch = health.Watch(health_pb2.HealthCheckRequest(service="vlm.v1.Decoder"))

        async def until(status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
            while (await watch.read()).status != status:
                pass

        async with asyncio.timeout(30), generate(running) as call:
            await until(health_pb2.HealthCheckResponse.SERVING)
            await opened(call, open_request(cases["text alone"], ENDLESS))
            await first_delta(call)
            os.kill(running.service._engine.child_pid, signal.SIGKILL)  # type: ignore[union-attr, arg-type]
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await rest_of(call)
            error = from_rpc_error(caught.value)
            assert (error.code, error.reason) == (Code.UNAVAILABLE, "ENGINE_LOST")
            await until(health_pb2.HealthCheckResponse.NOT_SERVING)
            await until(health_pb2.HealthCheckResponse.SERVING)
        watch.cancel()
        await still_works(running, cases["text alone"])


async def test_stopping_lets_answers_finish(serve_decoder: Serve, cases: dict[str, Case]) -> None:
    """On a signal a running answer comes to its end and new ones are refused; then the server is gone."""
    async with serve_decoder() as running:
        options = chat_pb2.GenerationOptions(temperature=0, max_tokens=400)
        async with generate(running) as call:
            await opened(call, open_request(cases["text alone"], options))
            await first_delta(call)
            running.stop.set()
            events = await rest_of(call)
            assert events[-1].finished.usage.completion_tokens == 400
        await running.ended
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await running.stub.GetModel(decoder_pb2.GetModelRequest(), timeout=5)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("name", TURNS)
async def test_prompts_are_counted(running: Running, cases: dict[str, Case], name: str) -> None:
    """Counting gives the ids and numbers of the prompt that would be answered."""
    case = cases[name]
    request = decoder_pb2.CountPromptTokensRequest(
        messages=wire_messages(case.messages),
        layouts=[wire_layout(layout) for layout in case.layouts],
        return_token_ids=True,
    )
    counted = await running.stub.CountPromptTokens(request)
    expected = case.inputs.input_ids[0].tolist()
    assert list(counted.token_ids) == expected
    assert counted.prompt_tokens == len(expected)
    assert counted.media_tokens == sum(layout.token_count for layout in case.layouts)
    request.return_token_ids = False
    assert not (await running.stub.CountPromptTokens(request)).token_ids


async def test_counting_is_not_bound_by_the_context(running: Running, bundle: Bundle, cases: dict[str, Case]) -> None:
    """A prompt that is far too long is counted without being written; its ids are not to be had."""
    case = cases["one image"]
    sent = wire_layout(case.layouts[0])
    sent.grid_thw.h, sent.grid_thw.w, sent.token_count = 40000, 40000, 400_000_000
    request = decoder_pb2.CountPromptTokensRequest(messages=wire_messages(case.messages), layouts=[sent])
    assert (await running.stub.CountPromptTokens(request)).media_tokens == 400_000_000
    request.return_token_ids = True
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await running.stub.CountPromptTokens(request)
    assert from_rpc_error(caught.value).reason == "PROMPT_TOO_LONG"
    del request.layouts[:]
    with pytest.raises(grpc.aio.AioRpcError, match="0 layouts for 1 media"):
        await running.stub.CountPromptTokens(request)


async def test_the_model_is_told(running: Running, bundle: Bundle) -> None:
    """Name, limits and fingerprint of what is served."""
    model = await running.stub.GetModel(decoder_pb2.GetModelRequest())
    assert (model.id, model.family, model.precision) == (bundle.model.id, "qwen3_vl", "fp32")
    assert model.context_length == bundle.context_length
    assert model.encoder_fingerprint == bundle.encoder_fingerprint
    assert model.images
    assert model.video


async def test_settings_say_how_answers_are_drawn(serve_decoder: Serve) -> None:
    """Greedily and to the end, unless the server is told otherwise."""
    recommended = RecommendedSampling(temperature=0.7, top_p=0.8, top_k=20)
    async with serve_decoder() as running:
        assert running.service.decoder.defaults == GenerationDefaults(recommended)
    async with serve_decoder(generation_config="auto", repetition_detection="on") as running:
        assert running.service.decoder.defaults == GenerationDefaults(recommended, sample=True, repetition=USUAL)


async def test_stopping_lets_waiting_requests_end(serve_decoder: Serve, cases: dict[str, Case]) -> None:
    """On a signal the running request and the one that waits for its slot have the grace period."""
    async with serve_decoder(slots=1, max_queue=1) as running, contextlib.AsyncExitStack() as stack:
        calls = [await stack.enter_async_context(generate(running)) for _ in range(2)]
        options = chat_pb2.GenerationOptions(temperature=0, max_tokens=100)
        await opened(calls[0], open_request(cases["text alone"], options))
        await first_delta(calls[0])
        await opened(calls[1], open_request(cases["text alone"], options))
        running.stop.set()
        for call in calls:
            events = await rest_of(call)
            assert events[-1].finished.usage.completion_tokens == 100
        await running.ended


async def test_a_stream_without_a_first_message_is_ended(serve_decoder: Serve, cases: dict[str, Case]) -> None:
    """It fails with a reason; it never held a place."""
    async with serve_decoder(slots=1, max_queue=0) as running:
        limits = dataclasses.replace(running.service.decoder.limits, opening_timeout=0.05)
        object.__setattr__(running.service.decoder, "limits", limits)
        async with generate(running) as call:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call.read()
            error = from_rpc_error(caught.value)
            assert (error.code, error.reason) == (Code.DEADLINE_EXCEEDED, "OPENING_TIMEOUT")
        await still_works(running, cases["text alone"])


async def test_silent_streams_do_not_keep_others_out(
    serve_decoder: Serve, cases: dict[str, Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Streams that opened and send no features lose their places to requests that can run."""
    monkeypatch.setattr("decoder_service.request.admission.SILENT_SECONDS", 0.05)
    async with serve_decoder(slots=1, max_queue=3) as running, contextlib.AsyncExitStack() as stack:
        silent = [await stack.enter_async_context(generate(running)) for _ in range(4)]
        for call in silent:
            await opened(call, open_request(cases["one image"]))
        assert running.service.decoder.admission.inside == 4
        while (error := await refusal(running, cases["text alone"])) is not None:
            assert error.reason == "QUEUE_FULL"  # until they have been silent for long enough
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await rest_of(silent[0])
        assert from_rpc_error(caught.value).reason == "MEDIA_TIMEOUT"


async def refusal(running: Running, case: Case) -> ServiceError | None:
    """The error of a request; None if it is answered."""
    try:
        await still_works(running, case)
    except grpc.aio.AioRpcError as error:
        return from_rpc_error(error)
    return None
