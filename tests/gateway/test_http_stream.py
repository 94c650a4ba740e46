"""Streams of the OpenAI-compatible door while nothing is to be said, and when they fail."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, cast

import httpx
import pytest
from starlette.types import ASGIApp, Message

from gateway.conductor import Conductor, Policy
from gateway.http import HttpServer, create_app
from gateway.http.stream import EventStream, Pace
from gateway.media import RequestLimits
from serving import metrics
from serving.errors import ServiceError, invalid
from tests.gateway.fakes import EncodeCall, FakeDecoder, FakeVision, InProcessDecoder, InProcessVision, down
from tests.gateway.openai_json import HELLO, PATH, ask, error, events, picture
from vlm.v1 import chat_pb2

STREAM = {**HELLO, "stream": True}
SOON = Pace(status_seconds=0.01, comment_seconds=0.01)
AT_ONCE = Pace(status_seconds=0, comment_seconds=60)
"""The status comes before anything else can happen, and no comment after it."""
LATE = Pace(status_seconds=60, comment_seconds=60)

STARTED = chat_pb2.ChatEvent(started=chat_pb2.Started(model="m"))
WORD = chat_pb2.ChatEvent(delta=chat_pb2.Delta(text="Hi"))
FINISHED = chat_pb2.ChatEvent(finished=chat_pb2.Finished(reason=chat_pb2.FINISH_REASON_STOP))


def progress(stage: chat_pb2.Stage.ValueType, done: int = 0, total: int = 0) -> chat_pb2.ChatEvent:
    """How far a request is."""
    return chat_pb2.ChatEvent(progress=chat_pb2.Progress(stage=stage, done=done, total=total))


class Scripted:
    """A conductor to whose request happens what a test says; None is the end."""

    def __init__(self, *script: chat_pb2.ChatEvent | Exception | None) -> None:
        self.script: asyncio.Queue[chat_pb2.ChatEvent | Exception | None] = asyncio.Queue()
        for step in script:
            self.script.put_nowait(step)
        self.closed = asyncio.Event()

    async def chat(self, request: Any, **of: Any) -> AsyncGenerator[chat_pb2.ChatEvent, None]:
        try:
            while (step := await self.script.get()) is not None:
                if isinstance(step, Exception):
                    raise step
                yield step
        finally:
            self.closed.set()


def door(conductor: Conductor | Scripted, pace: Pace) -> ASGIApp:
    """The application."""
    return create_app(cast(Conductor, conductor), seconds=30, max_body_bytes=1 << 20, max_requests=3, pace=pace)


def over(vision: FakeVision, decoder: FakeDecoder) -> Conductor:
    """A conductor over fake tiers."""
    return Conductor(InProcessVision(vision), InProcessDecoder(decoder), RequestLimits(), Policy())


async def post(app: ASGIApp, body: dict[str, Any]) -> httpx.Response:
    """The whole answer, when the application is done with it."""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway", timeout=30) as client:
        return await client.post(PATH, json=body)


@contextlib.asynccontextmanager
async def streamed(app: ASGIApp, body: dict[str, Any]) -> AsyncIterator[tuple[httpx.Response, AsyncIterator[str]]]:
    """An answer that comes over a socket: its head, and its lines but for empty ones."""
    server = HttpServer(app, grace_seconds=0)
    port = await server.start("127.0.0.1", 0)
    try:
        async with (
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False) as client,
            client.stream("POST", PATH, json=body) as response,
        ):
            yield response, (line async for line in response.aiter_lines() if line)
    finally:
        await server.stop()


async def until(lines: AsyncIterator[str], wanted: str) -> list[str]:
    """The lines as far as the one wanted."""
    seen: list[str] = []
    async for line in lines:
        seen.append(line)
        if line == wanted:
            return seen
    raise AssertionError(f"no {wanted!r} among {seen}")


def content(lines: list[str]) -> str:
    """The text in these lines; comments add nothing."""
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)


def counted(code: str) -> float:
    """How many calls have ended with this code."""
    return metrics.CALLS.labels(f"POST {PATH}", code)._value.get()


async def test_the_status_does_not_wait_for_the_encoder(vision: FakeVision, decoder: FakeDecoder) -> None:
    """Status, headers and comments come while the encoder is held, and then the answer, whole."""
    goes_on = asyncio.Event()

    async def hook(call: EncodeCall, chunk: int) -> None:
        if chunk == 2:
            await goes_on.wait()

    vision.hook = hook
    body = ask(picture(b"file one"), stream=True)
    async with streamed(door(over(vision, decoder), SOON), body) as (response, lines):
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["x-request-id"]
        comments = 0
        while comments < 3:
            comments += (await anext(lines)).startswith(": ")
        goes_on.set()
        assert content(await until(lines, "data: [DONE]")) == "A red circle."


async def test_comments_come_between_tokens() -> None:
    """A pause in an answer is filled with comments, and costs none of its words."""
    conductor = Scripted(STARTED, WORD)
    async with streamed(door(conductor, SOON), STREAM) as (_, lines):
        seen: list[str] = []
        while not content(seen):
            seen.append(await anext(lines))
        seen += [*await until(lines, ": waiting"), *await until(lines, ": waiting")]
        for event in (WORD, FINISHED, None):
            conductor.script.put_nowait(event)
        seen += await until(lines, "data: [DONE]")
    assert content(seen) == "HiHi"


async def test_comments_tell_progress() -> None:
    """Progress is told in comments, in its last state, until the first token; it makes no chunks."""
    conductor = Scripted()
    script = conductor.script
    async with streamed(door(conductor, SOON), STREAM) as (_, lines):
        seen = await until(lines, ": waiting")
        script.put_nowait(STARTED)
        for event, comment in (
            (progress(chat_pb2.STAGE_ENCODING, 1024, 4096), ": encoding 1024 of 4096 patches"),
            (progress(chat_pb2.STAGE_ENCODING), ": encoding"),
            (progress(chat_pb2.STAGE_QUEUED), ": queued"),
            (progress(chat_pb2.STAGE_PREFILL, 512, 2048), ": prefill 512 of 2048 tokens"),
            (progress(chat_pb2.STAGE_UNSPECIFIED), ": waiting"),
        ):
            script.put_nowait(event)
            seen += await until(lines, comment)
        script.put_nowait(progress(chat_pb2.STAGE_PREFILL, 1024, 2048))
        seen += await until(lines, ": prefill 1024 of 2048 tokens")
        script.put_nowait(WORD)
        seen += await until(lines, ": waiting")
        for event in (FINISHED, None):
            script.put_nowait(event)
        seen += await until(lines, "data: [DONE]")
    assert len([line for line in seen if line.startswith("data: ")]) == 4  # role, word, reason, [DONE]


async def test_frequent_progress_does_not_hold_comments_up() -> None:
    """Comments come at their time, however often progress is told in between."""
    sent: list[bytes] = []

    async def send(message: Message) -> None:
        sent.append(message.get("body", b""))

    async def happen() -> AsyncIterator[chat_pb2.ChatEvent]:
        while b": queued\n\n" not in sent:
            yield progress(chat_pb2.STAGE_QUEUED)

    await EventStream(send, SOON, str).run(happen(), lambda event: [])


async def test_a_bad_picture_is_a_status(vision: FakeVision, decoder: FakeDecoder) -> None:
    """A failure before the status is 400 with JSON, as without a stream."""
    response = await post(door(over(vision, decoder), LATE), ask(picture(b"rubbish"), stream=True))
    assert error(response) == (400, "invalid_request_error", "messages[0].content[0].image_url", "image_unreadable")


@pytest.mark.parametrize("script", [(), (STARTED,), (STARTED, progress(chat_pb2.STAGE_QUEUED)), (STARTED, WORD)])
async def test_a_late_failure_is_an_event(script: tuple[Any, ...]) -> None:
    """A failure after the status is the last event, without `[DONE]`, and is counted as what it is."""
    before = counted("503")
    response = await post(door(Scripted(*script, down()), AT_ONCE), STREAM)
    assert response.status_code == 200
    assert events(response.text)[-1]["error"]["code"] == "going_down"
    assert counted("503") == before + 1


async def test_a_late_failure_names_fields_of_the_json() -> None:
    """An error in an event has the names of the JSON, as one with a status has."""
    failure = invalid("messages[0].parts[0].image", "cannot be read")
    response = await post(door(Scripted(failure), AT_ONCE), ask(picture(b"file one"), stream=True))
    [event] = events(response.text)
    assert event["error"]["param"] == "messages[0].content[0].image_url"
    assert event["error"]["message"] == "messages[0].content[0].image_url: cannot be read"


async def test_a_late_unexpected_failure_tells_nothing() -> None:
    """A bug after the status ends the stream with an event that does not have its text."""
    before = counted("500")
    response = await post(door(Scripted(RuntimeError("a secret")), AT_ONCE), STREAM)
    [event] = events(response.text)
    assert (event["error"]["type"], event["error"]["code"]) == ("server_error", "internal")
    assert "secret" not in response.text
    assert counted("500") == before + 1


async def test_a_failure_before_the_status_is_no_event() -> None:
    """Until the status is sent, a stream fails as any other request does."""
    with pytest.raises(ServiceError):
        await EventStream(cast(Any, None), LATE, str).run(Scripted(down()).chat(None), list)


@pytest.mark.parametrize("script", [(), (STARTED, WORD)])
async def test_a_client_that_leaves_a_silent_stream_ends_the_work(script: tuple[Any, ...]) -> None:
    """Closing the connection while only comments come ends the generator of events."""
    conductor = Scripted(*script)
    async with streamed(door(conductor, SOON), STREAM) as (response, lines):
        await until(lines, ": waiting")
        assert not conductor.closed.is_set()
        await response.aclose()
        await conductor.closed.wait()
