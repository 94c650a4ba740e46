"""Features on their way into a real server: taken in, begun anew, refused."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Callable

import grpc
import numpy as np
import pytest
import pytest_asyncio

from decoder_service.chat import Message, Text, first_of_each, media_of
from decoder_service.request.prompt import PromptBuilder
from serving.bundle import Bundle
from serving.errors import Code
from serving.media import media_digest
from serving.status import from_rpc_error
from tests.decoder_service.cases import Case, make_case
from tests.decoder_service.client import (
    Answer,
    Call,
    Features,
    answer,
    done_sending,
    generate,
    open_request,
    opened,
    refused,
    rest_of,
    send,
    still_works,
    until_empty,
)
from tests.decoder_service.conftest import Running, Serve
from tests.pictures import noise, png
from tests.reference import Reference, Turn
from vlm.v1 import chat_pb2, decoder_pb2, media_pb2, tensor_pb2, vision_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(serve_decoder: Serve) -> AsyncIterator[Running]:
    """One server for the tests that leave it as it was: it keeps nothing, so what every test sends is used."""
    async with serve_decoder(max_queue=2, feature_cache_bytes=0, cached_prompts=0) as running:
        yield running


async def test_the_same_image_is_sent_once(running: Running, bundle: Bundle, cases: dict[str, Case]) -> None:
    """An image that comes twice is asked for once and has its place twice."""
    one = cases["one image"]
    message = one.messages[0]
    case = dataclasses.replace(
        one,
        messages=(Message(message.role, message.parts[:1] * 2),),
        layouts=one.layouts * 2,
        features=one.features * 2,
    )
    got = await answer(running, case, bundle)
    assert first_of_each(media_of(case.messages)) == (0,)
    assert got.started.started.media_tokens == 2 * len(one.features[0])


@pytest.mark.parametrize("dtype", [tensor_pb2.DATA_TYPE_FLOAT16, tensor_pb2.DATA_TYPE_BFLOAT16])
async def test_half_precision_features(running: Running, bundle: Bundle, cases: dict[str, Case], dtype: int) -> None:
    """Features may come in 2-byte types; the answer is that of the same values in float32."""
    case = cases["one image"]
    if dtype == tensor_pb2.DATA_TYPE_FLOAT16:
        short = case.features[0].astype(np.float16)
        whole = short.astype(np.float32)
    else:
        short = (case.features[0].view(np.uint32) >> 16).astype(np.uint16)
        whole = (short.astype(np.uint32) << 16).view(np.float32)
    expected = await answer(running, dataclasses.replace(case, features=(whole,)), bundle)
    features = Features(case, bundle)
    features.headers[0].features.dtype = dtype
    features.rows[0] = short
    async with generate(running) as call:
        await send(call, features.all(await opened(call, open_request(case))))
        assert Answer(await rest_of(call)).token_ids == expected.token_ids


async def test_a_second_header_begins_anew(running: Running, bundle: Bundle, cases: dict[str, Case]) -> None:
    """Features that were broken off are sent again from the start; of a medium that is whole nothing more is taken."""
    case = cases["two images"]
    features = Features(case, bundle)
    wrong = [np.zeros_like(rows) for rows in features.rows]
    async with generate(running) as call:
        assert await opened(call, open_request(case)) == [0, 1]
        await send(call, [features.header(1), *list(features.chunks(1, wrong[1]))[:1], features.header(0)])
        await send(call, features.chunks(0))
        await send(call, [features.header(0), *features.chunks(0, wrong[0]), features.header(0)])
        await send(call, [*list(features.chunks(0, wrong[0]))[:2], features.header(1), *features.chunks(1)])
        got = Answer(await rest_of(call))
    assert got.token_ids == case.greedy[: len(got.token_ids)]
    # Negative control: what was passed over would have given other tokens.
    async with generate(running) as call:
        await opened(call, open_request(case))
        await send(call, [features.header(0), *features.chunks(0, wrong[0])])
        await send(call, [features.header(1), *features.chunks(1, wrong[1])])
        assert Answer(await rest_of(call)).token_ids != got.token_ids


async def test_chunks_after_the_last_are_refused(running: Running, bundle: Bundle, cases: dict[str, Case]) -> None:
    """A medium that is whole takes no chunk without a header before it."""
    case = cases["two images"]
    features = Features(case, bundle)
    sent = [features.header(0), *features.chunks(0), *features.chunks(0)]
    error = await refused(running, open_request(case), sent)
    assert (error.code, error.violations[0].field) == (Code.INVALID_ARGUMENT, "chunk.media_index")


HEADER_CHANGES: dict[str, Callable[[vision_pb2.EncodeHeader], object]] = {
    "fingerprint": lambda header: setattr(header, "encoder_fingerprint", "0" * 64),
    "encoder dtype": lambda header: setattr(header, "encoder_dtype", tensor_pb2.DATA_TYPE_BFLOAT16),
    "frame times": lambda header: header.layout.frame_times.extend([0.0] * 5000),
    "digest": lambda header: setattr(header.layout, "digest", media_digest(b"another")),
    "kind": lambda header: setattr(header.layout, "kind", media_pb2.MEDIA_KIND_VIDEO),
    "token count": lambda header: setattr(header.layout, "token_count", header.layout.token_count + 1),
    "grid": lambda header: setattr(header.layout.grid_thw, "h", header.layout.grid_thw.h + 1),
    "width": lambda header: header.features.shape.append(header.features.shape.pop() + 1),
    "rows": lambda header: header.features.shape.insert(0, header.features.shape.pop(0) + 1),
    "dtype": lambda header: setattr(header.features, "dtype", 9),
}


def chunk_at_start(size: int) -> decoder_pb2.GenerateRequest:
    """A chunk of so many zeros."""
    chunk = tensor_pb2.TensorChunk(offset=0, data=bytes(size))
    return decoder_pb2.GenerateRequest(chunk=decoder_pb2.FeatureChunk(media_index=0, chunk=chunk))


STREAM_CHANGES: dict[str, Callable[[list[decoder_pb2.GenerateRequest], int], list[decoder_pb2.GenerateRequest]]] = {
    "gap": lambda sent, size: [sent[0], sent[2]],
    "overlap": lambda sent, size: [sent[0], sent[1], sent[1]],
    "overrun": lambda sent, size: [sent[0], chunk_at_start(size + 1)],
    "no header": lambda sent, size: sent[1:],
    "index": lambda sent, size: [decoder_pb2.GenerateRequest(header=decoder_pb2.FeatureHeader(media_index=3))],
    "short": lambda sent, size: sent[:-1],
    "empty": lambda sent, size: [decoder_pb2.GenerateRequest()],
}


def broken(case: Case, bundle: Bundle, how: str) -> list[decoder_pb2.GenerateRequest]:
    """A stream of one image's features with one thing wrong."""
    features = Features(case, bundle)
    HEADER_CHANGES.get(how, lambda _: None)(features.headers[0])
    sent = [features.header(0), *features.chunks(0)]
    return STREAM_CHANGES.get(how, lambda sent, _: sent)(sent, features.rows[0].nbytes)


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("fingerprint", (Code.FAILED_PRECONDITION, "ENCODER_MISMATCH", None)),
        ("encoder dtype", (Code.FAILED_PRECONDITION, "ENCODER_MISMATCH", None)),
        ("frame times", (Code.INVALID_ARGUMENT, "FIELD_INVALID", "features[0].layout.frame_times")),
        ("digest", (Code.INVALID_ARGUMENT, "FIELD_INVALID", "features[0].layout.digest")),
        ("kind", (Code.INVALID_ARGUMENT, "FIELD_INVALID", "features[0].layout.kind")),
        ("token count", (Code.INVALID_ARGUMENT, "FIELD_INVALID", "features[0].layout.token_count")),
        ("grid", (Code.INVALID_ARGUMENT, "FIELD_INVALID", "features[0].layout.grid_thw")),
        ("width", (Code.INVALID_ARGUMENT, "FIELD_INVALID", "features[0].shape")),
        ("rows", (Code.INVALID_ARGUMENT, "FIELD_INVALID", "features[0].shape")),
        ("dtype", (Code.INVALID_ARGUMENT, "FIELD_INVALID", "features[0].dtype")),
        ("gap", (Code.INVALID_ARGUMENT, "FIELD_INVALID", "features[0].offset")),
        ("overlap", (Code.INVALID_ARGUMENT, "FIELD_INVALID", "features[0].offset")),
        ("overrun", (Code.INVALID_ARGUMENT, "FIELD_INVALID", "features[0].data")),
        ("no header", (Code.INVALID_ARGUMENT, "FIELD_INVALID", "chunk.media_index")),
        ("index", (Code.INVALID_ARGUMENT, "FIELD_INVALID", "header.media_index")),
        ("short", (Code.INVALID_ARGUMENT, "FEATURES_INCOMPLETE", "header")),
        ("empty", (Code.INVALID_ARGUMENT, "FIELD_INVALID", "payload")),
    ],
)
async def test_features_refused(
    running: Running, bundle: Bundle, cases: dict[str, Case], how: str, expected: tuple[Code, str, str | None]
) -> None:
    """Features that do not fit are refused with their own reason and field, and the next request works."""
    case = cases["one image"]
    request = open_request(case)
    request.open.encoder_dtype = tensor_pb2.DATA_TYPE_FLOAT32
    error = await refused(running, request, broken(case, bundle, how))
    code, reason, field = expected
    assert (error.code, error.reason) == (code, reason), error.message
    assert [violation.field for violation in error.violations] == ([field] if field else [])
    await still_works(running, cases["text alone"])


async def test_openings_refused(running: Running, cases: dict[str, Case]) -> None:
    """A stream must begin with an opening, have one, and one that is valid."""
    case = cases["one image"]
    error = await refused(running, decoder_pb2.GenerateRequest(chunk=decoder_pb2.FeatureChunk()))
    assert [violation.field for violation in error.violations] == ["open"]
    error = await refused(running, open_request(case), [open_request(case)])
    assert [violation.field for violation in error.violations] == ["open"]
    error = await refused(running, decoder_pb2.GenerateRequest(open=decoder_pb2.GenerateOpen()))
    assert (error.code, error.violations[0].field) == (Code.INVALID_ARGUMENT, "messages")
    await still_works(running, cases["text alone"])


async def test_prompts_that_are_too_long(
    serve_decoder: Serve, bundle: Bundle, prompts: PromptBuilder, cases: dict[str, Case]
) -> None:
    """A text is refused when it is opened, media at the header that passes the context, before any feature comes."""
    case, text = cases["two images"], cases["text alone"]
    rows = [len(rows) for rows in case.features]
    rendered = len(prompts.render(case.messages).token_ids)
    context = rendered + sum(rows) - 2
    features = Features(case, bundle)
    async with serve_decoder(context_length=context) as running:
        long = dataclasses.replace(text, messages=(Message(text.messages[0].role, (Text("word " * context),)),))
        error = await refused(running, open_request(long))
        assert (error.code, error.reason) == (Code.RESOURCE_EXHAUSTED, "PROMPT_TOO_LONG")
        assert (error.violations[0].field, error.metadata["limit"]) == ("messages", str(context))
        options = chat_pb2.GenerationOptions(temperature=0)
        error = await refused(running, open_request(case, options), [features.header(0), features.header(1)])
        assert (error.code, error.reason) == (Code.RESOURCE_EXHAUSTED, "PROMPT_TOO_LONG")
        options = chat_pb2.GenerationOptions(max_tokens=context)
        error = await refused(running, open_request(text, options))
        assert (error.code, error.violations[0].field) == (Code.INVALID_ARGUMENT, "generation.max_tokens")
        assert str(context) in error.message
        options = chat_pb2.GenerationOptions(max_tokens=rows[1])
        error = await refused(running, open_request(case, options), [features.header(0)])
        assert (error.code, error.violations[0].field) == (Code.INVALID_ARGUMENT, "generation.max_tokens")
        await still_works(running, text)


async def test_feature_memory_is_bounded(serve_decoder: Serve, bundle: Bundle, cases: dict[str, Case]) -> None:
    """One request's features, and those of all together, are refused by their headers."""
    case = cases["one image"]
    size = case.features[0].nbytes
    features = Features(case, bundle)
    async with serve_decoder(max_feature_bytes=size - 1) as running:
        error = await refused(running, open_request(case), [features.header(0)])
        assert (error.code, error.reason) == (Code.RESOURCE_EXHAUSTED, "FEATURES_TOO_LARGE")
        assert f"max_feature_bytes, which is {size - 1}" in error.message
    async with serve_decoder(max_buffered_feature_bytes=2 * size - 1) as running, generate(running) as first:
        await opened(first, open_request(case))
        await send(first, [features.header(0)])
        # Whichever of the two headers is read second is refused.
        async with generate(running) as second:
            await opened(second, open_request(case))
            await send(second, [features.header(0)])
            reads = [asyncio.ensure_future(rest_of(call)) for call in (first, second)]
            done, _ = await asyncio.wait(reads, return_when=asyncio.FIRST_COMPLETED)
            errors = [from_rpc_error(task.exception()) for task in done]  # type: ignore[arg-type]
            assert [error.reason for error in errors] == ["FEATURE_MEMORY_FULL"]
            assert errors[0].retry_after
            for task in reads:
                task.cancel()


async def test_features_that_never_come(serve_decoder: Serve, cases: dict[str, Case]) -> None:
    """A caller that sends nothing is let go after media_timeout, and its place is free again."""
    async with serve_decoder(media_timeout=0.2, max_queue=0) as running:
        async with generate(running) as call:
            await opened(call, open_request(cases["one image"]))
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await rest_of(call)
        error = from_rpc_error(caught.value)
        assert (error.code, error.reason) == (Code.DEADLINE_EXCEEDED, "MEDIA_TIMEOUT")
        await still_works(running, cases["text alone"])


async def test_progress_keeps_the_decoder_waiting(serve_decoder: Serve, bundle: Bundle, cases: dict[str, Case]) -> None:
    """While progress comes the features may take longer than media_timeout; it changes nothing of the answer."""
    case = cases["one image"]
    features = Features(case, bundle)
    progress = vision_pb2.EncodeProgress(patches_done=1, patches_total=2)
    message = decoder_pb2.GenerateRequest(progress=decoder_pb2.FeatureProgress(media_index=0, progress=progress))
    timeout = 2.0
    async with serve_decoder(media_timeout=timeout) as running, generate(running) as call:
        await opened(call, open_request(case))
        began = time.monotonic()
        await send(call, [message])
        await send(call, [features.header(0)])
        while time.monotonic() - began < 1.5 * timeout:
            await send(call, [message])
            await asyncio.sleep(timeout / 40)
        await send(call, features.chunks(0))
        got = Answer(await rest_of(call))
    assert got.token_ids == case.greedy[: len(got.token_ids)]


async def test_started_comes_before_the_features(running: Running, bundle: Bundle, cases: dict[str, Case]) -> None:
    """With the last header the prompt is laid out and told, with what each medium became; a bad prompt is refused."""
    case = cases["odd video and an image"]
    features = Features(case, bundle)
    for header in features.headers:
        header.layout.size_given.width, header.layout.size_given.height = 4000, 3000
        header.layout.size_used.width, header.layout.size_used.height = 96, 64
        header.layout.frame_times.extend([0.5, 1.0])
    async with generate(running) as call:
        needed = await opened(call, open_request(case))
        await send(call, [features.header(index) for index in needed])
        started = (await call.read()).event.started
        assert list(started.media) == [header.layout for header in features.headers]
        assert started.media_tokens == sum(layout.token_count for layout in case.layouts)
        for index in needed:
            await send(call, features.chunks(index))
        events = await rest_of(call)
    tokens = [token for event in events for token in event.delta.token_ids]
    assert tokens == case.greedy[: len(tokens)]
    assert events[-1].WhichOneof("event") == "finished"


async def test_a_layout_is_fixed_once_it_is_told(running: Running, bundle: Bundle, cases: dict[str, Case]) -> None:
    """Features may be sent again after `started`, and only those of the layout that the prompt has."""
    case = cases["one image"]
    features = Features(case, bundle)
    async with generate(running) as call:
        await opened(call, open_request(case))
        await send(call, [features.header(0)])
        assert (await call.read()).event.HasField("started")
        await send(call, [*list(features.chunks(0))[:1], features.header(0), *features.chunks(0)])
        assert (await rest_of(call))[-1].HasField("finished")
    grid = features.headers[0].layout.grid_thw
    async with generate(running) as call:
        await opened(call, open_request(case))
        await send(call, [features.header(0)])
        assert (await call.read()).event.HasField("started")
        grid.h, grid.w = grid.w, grid.h
        await send(call, [features.header(0)])
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await rest_of(call)
    error = from_rpc_error(caught.value)
    assert (error.code, error.violations[0].field) == (Code.INVALID_ARGUMENT, "header.layout")


async def test_progress_events_where_they_are_asked_for(
    serve_decoder: Serve, bundle: Bundle, cases: dict[str, Case]
) -> None:
    """A request that asks hears that it is queued and how far its prompt is; the tokens are the same."""
    case = cases["one image"]
    request = open_request(case)
    request.open.report_progress = True
    async with serve_decoder(chunk_tokens=8, feature_cache_bytes=0, cached_prompts=0) as running:
        expected = await answer(running, case, bundle)
        async with generate(running) as call:
            await send(call, Features(case, bundle).all(await opened(call, request)))
            events = await rest_of(call)
    kinds = [event.WhichOneof("event") for event in events]
    first = kinds.index("delta")
    assert kinds[0] == "started"
    assert set(kinds[1:first]) == {"progress"}
    assert "progress" not in kinds[first:]
    progress = [event.progress for event in events[1:first]]
    assert progress[0].stage == chat_pb2.STAGE_QUEUED
    assert {one.stage for one in progress[1:]} == {chat_pb2.STAGE_PREFILL}
    done = [one.done for one in progress[1:]]
    assert done == sorted(set(done))
    assert {one.total for one in progress[1:]} == {events[0].started.prompt_tokens}
    assert [t for event in events for t in event.delta.token_ids] == expected.token_ids


THREE: list[Turn] = [
    ("user", [png(noise(192, 192, 10)), png(noise(192, 192, 11)), "and", png(noise(96, 96, 12)), "Compare."])
]
"""With the features of two of the pictures, more tokens can be read than it takes to begin."""


@pytest.fixture(scope="module")
def three(reference: Reference) -> Case:
    """Three pictures."""
    return make_case(reference, THREE)


@contextlib.asynccontextmanager
async def read_as_far_as_two_pictures(
    running: Running, case: Case, features: Features
) -> AsyncIterator[tuple[Call, chat_pb2.Progress]]:
    """A call of which two pictures were sent and the headers of all, and how far its prompt was read then."""
    request = open_request(case)
    request.open.report_progress = True
    async with generate(running) as call:
        assert await opened(call, request) == [0, 1, 2]
        await send(call, [features.header(index) for index in (0, 1, 2)])
        assert (await call.read()).event.HasField("started")
        await send(call, [*features.chunks(0), *features.chunks(1)])
        told = (await call.read()).event.progress
        assert told.stage == chat_pb2.STAGE_PREFILL
        yield call, told


async def test_a_prompt_is_read_while_features_are_missing(
    serve_decoder: Serve, bundle: Bundle, cases: dict[str, Case], three: Case
) -> None:
    """The third picture is sent only after the two before it have been read, and others have the place meanwhile."""
    features = Features(three, bundle)
    before_third = sum(len(rows) for rows in three.features[:2])
    async with (
        serve_decoder(read_ahead="on", slots=1) as running,
        read_as_far_as_two_pictures(running, three, features) as (call, told),
    ):
        assert before_third < told.done < told.total - len(three.features[2])
        other = await answer(running, cases["text alone"], bundle)
        assert other.token_ids == cases["text alone"].greedy[: len(other.token_ids)]
        await send(call, features.chunks(2))
        events = await rest_of(call)
    tokens = [token for event in events for token in event.delta.token_ids]
    assert tokens == three.greedy[: len(tokens)]
    assert not any(event.progress.stage == chat_pb2.STAGE_QUEUED for event in events)
    finished = events[-1].finished
    assert finished.usage.cached_tokens == 0
    assert finished.timings.prefill_seconds < finished.timings.time_to_first_token_seconds


async def test_features_that_never_come_free_the_place_of_what_was_read(
    serve_decoder: Serve, bundle: Bundle, cases: dict[str, Case], three: Case
) -> None:
    """Silence, a stream that ends too early and a client that leaves: as without reading ahead, and nothing is held."""
    features = Features(three, bundle)
    nothing_kept = {"feature_cache_bytes": 0, "cached_prompts": 0}
    async with serve_decoder(read_ahead="on", slots=1, media_timeout=2, **nothing_kept) as running:
        engine = running.service._decoder.engine  # type: ignore[union-attr]
        for ends in (True, False):
            async with read_as_far_as_two_pictures(running, three, features) as (call, _):
                if ends:
                    await done_sending(call)
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await rest_of(call)
            error = from_rpc_error(caught.value)
            assert error.reason == ("FEATURES_INCOMPLETE" if ends else "MEDIA_TIMEOUT")
            assert "[2]" in error.message
        async with read_as_far_as_two_pictures(running, three, features):
            pass
        await until_empty(running)
        await still_works(running, cases["text alone"])
        assert not engine._calls  # type: ignore[attr-defined]
