"""The clients against a gateway that plays a script."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

import triptych
from tests.triptych.scripted import SECONDS, Context, accept, answered, image_layout, playing, video_layout, wait
from vlm.v1 import chat_pb2, gateway_pb2

MESSAGES = [triptych.user(triptych.Image(b"data"), "what?")]
PROGRESS = (
    chat_pb2.Progress(stage=chat_pb2.STAGE_ENCODING, done=1, total=4),
    chat_pb2.Progress(stage=chat_pb2.STAGE_QUEUED),
    chat_pb2.Progress(stage=chat_pb2.STAGE_PREFILL, done=3, total=9),
    chat_pb2.Progress(done=1, total=2),  # a stage of a later version
)
MEDIA = (image_layout((4000, 3000), (1184, 864)), video_layout((640, 480), (320, 224)))
LAYOUTS = (
    triptych.MediaLayout("image", (4000, 3000), (1184, 864), (1, 54, 74), 999),
    triptych.MediaLayout("video", (640, 480), (320, 224), (2, 14, 20), 140, (0, 0.5, 1, 1.5), (0.25, 1.25)),
)


class Blocking:
    """Calls of the blocking client."""

    def events(self, address: str, **options: Any) -> list[triptych.Event]:
        with triptych.Client(address) as client:
            return list(client.chat(MESSAGES, **options))

    def call(self, address: str, name: str, **options: Any) -> Any:
        with triptych.Client(address) as client:
            return getattr(client, name)(MESSAGES, **options)


class Asyncio:
    """The same calls of the client on asyncio."""

    def events(self, address: str, **options: Any) -> list[triptych.Event]:
        async def run() -> list[triptych.Event]:
            async with triptych.AsyncClient(address) as client:
                return [event async for event in client.chat(MESSAGES, **options)]

        return asyncio.run(run())

    def call(self, address: str, name: str, **options: Any) -> Any:
        async def run() -> Any:
            async with triptych.AsyncClient(address) as client:
                return await getattr(client, name)(MESSAGES, **options)

        return asyncio.run(run())


@pytest.fixture(params=[Blocking, Asyncio])
def client(request: pytest.FixtureRequest) -> Blocking | Asyncio:
    """Either client."""
    made: Callable[[], Blocking | Asyncio] = request.param
    return made()


def _play(request: gateway_pb2.ChatRequest, context: Context) -> Iterator[chat_pb2.ChatEvent]:
    accept(context)
    yield from answered("A cat.", MEDIA, PROGRESS if request.report_progress else ())


def test_progress_comes_where_it_was_asked_for(client: Blocking | Asyncio) -> None:
    """First that the request was accepted, then the start with its layouts, progress, the answer."""
    with playing(_play) as gateway:
        accepted, started, *progress, delta, finished = client.events(gateway.address, report_progress=True)
        assert gateway.chats[0].report_progress
    assert accepted == triptych.Accepted("r")
    assert isinstance(started, triptych.Started)
    assert started.media == LAYOUTS
    assert progress == [
        triptych.Progress("encoding", 1, 4),
        triptych.Progress("queued", 0, 0),
        triptych.Progress("prefill", 3, 9),
    ]
    assert delta == triptych.Delta("A cat.", (1,))
    assert isinstance(finished, triptych.Finished)


def test_progress_is_left_out_where_it_was_not_asked_for(client: Blocking | Asyncio) -> None:
    """The events are those of earlier versions."""
    with playing(_play) as gateway:
        events = client.events(gateway.address)
        assert not gateway.chats[0].report_progress
    assert [type(event) for event in events] == [triptych.Started, triptych.Delta, triptych.Finished]


def test_an_answer_has_the_layouts_and_skips_progress(client: Blocking | Asyncio) -> None:
    """`answer` is the same with progress and without, and says what the media became."""
    with playing(_play) as gateway:
        plain = client.call(gateway.address, "answer")
        assert client.call(gateway.address, "answer", report_progress=True) == plain
    assert (plain.text, plain.media) == ("A cat.", LAYOUTS)


def test_a_count_says_what_the_media_would_become(client: Blocking | Asyncio) -> None:
    """`count` has tokens and layouts, `count_tokens` the number alone; both send the options."""
    reply = gateway_pb2.CountTokensResponse(prompt_tokens=1150, media_tokens=1139, media=MEDIA)
    with playing(_play, reply) as gateway:
        counted = client.call(gateway.address, "count", max_pixels=5, model="m")
        assert counted == triptych.TokenCount(1150, 1139, LAYOUTS)
        assert client.call(gateway.address, "count_tokens", max_pixels=5, model="m") == 1150
        assert {(sent.media.max_pixels, sent.model) for sent in gateway.counts} == {(5, "m")}


def test_a_refusal_before_the_metadata_is_the_error_itself(client: Blocking | Asyncio) -> None:
    """A gateway that refuses at once has accepted nothing: the error comes, and no event."""

    def refuse(request: gateway_pb2.ChatRequest, context: Context) -> Iterator[chat_pb2.ChatEvent]:
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no")

    with playing(refuse) as gateway, pytest.raises(triptych.TriptychError) as raised:
        client.events(gateway.address, report_progress=True)
    assert raised.value.code is triptych.Code.INVALID_ARGUMENT


def test_acceptance_does_not_wait_for_the_first_event() -> None:
    """`Accepted` comes while the gateway still reads the media; leaving the loop then cancels the call."""
    cancelled = threading.Event()

    def hold(request: gateway_pb2.ChatRequest, context: Context) -> Iterator[chat_pb2.ChatEvent]:
        context.add_callback(cancelled.set)
        accept(context)
        wait(cancelled)
        yield from ()

    with playing(hold) as gateway, triptych.Client(gateway.address) as blocking:
        events = blocking.chat(MESSAGES, report_progress=True, timeout=SECONDS)
        assert next(events) == triptych.Accepted("r")
        events.close()  # type: ignore[attr-defined]  # a generator, as a loop that is left closes it
        wait(cancelled)


@pytest.mark.parametrize("name", ["answer", "count"])
def test_an_unknown_option_is_a_type_error(client: Blocking | Asyncio, name: str) -> None:
    """A misspelled option is refused like any other keyword of Python's, before anything is sent."""
    with pytest.raises(TypeError, match="there is no option 'max_pixel'"):
        client.call("127.0.0.1:1", name, max_pixel=1000)


@pytest.mark.parametrize(
    ("value", "kind"), [(-1, ValueError), (1 << 33, ValueError), ("5", TypeError), (1.5, TypeError)]
)
def test_a_number_that_the_wire_cannot_hold_is_named(
    client: Blocking | Asyncio, value: Any, kind: type[Exception]
) -> None:
    """The error says which option it is."""
    with pytest.raises(kind, match="max_pixels is "):
        client.call("127.0.0.1:1", "count", max_pixels=value)
