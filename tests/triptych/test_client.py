"""The clients against a gateway that plays a script."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pydantic
import pytest

import triptych
from serving.errors import Reason, ServiceError, unavailable
from serving.status import from_rpc_error
from serving.transport import hold_port
from tests.processes import apart
from tests.triptych.scripted import (
    SECONDS,
    Context,
    Script,
    accept,
    answered,
    fail,
    image_layout,
    playing,
    video_layout,
    wait,
)
from triptych.client import DEFAULT_RETRIES
from triptych.errors import GATEWAY_UNAVAILABLE
from triptych.gateways import addresses_of
from triptych.retries import Attempts
from vlm.v1 import chat_pb2, gateway_pb2, gateway_pb2_grpc

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


Heard = Callable[[triptych.Event], None]


def _nothing(event: triptych.Event) -> None:
    """Do nothing with an event."""


class Blocking:
    """Calls of the blocking client."""

    def events(self, address: str, retries: int = 0, heard: Heard = _nothing, **options: Any) -> list[triptych.Event]:
        with triptych.Client(address, retries=retries) as client:
            return [heard(event) or event for event in client.chat(MESSAGES, **options)]

    def call(self, address: str | list[str], name: str, *more: Any, retries: int = 0, **options: Any) -> Any:
        with triptych.Client(address, retries=retries) as client:
            return getattr(client, name)(options.pop("messages", MESSAGES), *more, **options)

    def after_close(self, address: str) -> None:
        client = triptych.Client(address)
        client.close()
        client.answer(MESSAGES)


class Asyncio:
    """The same calls of the client on asyncio."""

    def events(self, address: str, retries: int = 0, heard: Heard = _nothing, **options: Any) -> list[triptych.Event]:
        async def run() -> list[triptych.Event]:
            async with triptych.AsyncClient(address, retries=retries) as client:
                return [heard(event) or event async for event in client.chat(MESSAGES, **options)]

        return asyncio.run(run())

    def call(self, address: str | list[str], name: str, *more: Any, retries: int = 0, **options: Any) -> Any:
        async def run() -> Any:
            async with triptych.AsyncClient(address, retries=retries) as client:
                return await getattr(client, name)(options.pop("messages", MESSAGES), *more, **options)

        return asyncio.run(run())

    def after_close(self, address: str) -> None:
        async def run() -> None:
            client = triptych.AsyncClient(address)
            await client.close()
            await client.answer(MESSAGES)

        asyncio.run(run())


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


def _failing(
    times: int,
    error: ServiceError,
    *,
    accepts: bool = True,
    begins: bool = False,
    behind: threading.Event | None = None,
) -> Script:
    """Fails so many times, before the answer, behind its first event or behind one of the test; answers then."""
    left = [error] * times

    def play(request: gateway_pb2.ChatRequest, context: Context) -> Iterator[chat_pb2.ChatEvent]:
        if accepts:
            accept(context)
        if begins:
            yield chat_pb2.ChatEvent(started=chat_pb2.Started(request_id="r"))
        if behind is not None:
            wait(behind)
        if left:
            fail(context, left.pop())
        yield from answered()

    return play


DOWN = unavailable(Reason.DECODER_UNAVAILABLE, "no decoder", retry_after=0.001)


def test_what_is_unavailable_is_tried_again(client: Blocking | Asyncio) -> None:
    """As often as it was told to, for answers and for counts; the request is the same each time."""
    with playing(_failing(2, DOWN)) as gateway:
        assert client.call(gateway.address, "answer", retries=2).text == "A cat."
        assert len(gateway.chats) == 3
        assert gateway.chats[0] == gateway.chats[2]
        gateway.count_errors += [DOWN, DOWN]
        client.call(gateway.address, "count", retries=2)
        assert len(gateway.counts) == 3


@pytest.mark.parametrize(
    ("play", "options", "calls"),
    [
        (_failing(9, DOWN), {"retries": 2}, 3),  # it stays so
        (_failing(9, DOWN), {"retries": 0}, 1),  # switched off
        (_failing(9, DOWN, begins=True), {"retries": 2}, 1),  # the answer has begun
        (_failing(9, unavailable(Reason.DECODER_UNAVAILABLE, "no decoder", retry_after=999)), {"timeout": 60}, 1),
        (_failing(9, ServiceError(triptych.Code.RESOURCE_EXHAUSTED, "QUEUE_FULL", "no", retry_after=0.001)), {}, 1),
    ],
    ids=["too often", "off", "begun", "past the deadline", "another code"],
)
def test_what_is_not_tried_again(client: Blocking | Asyncio, play: Script, options: dict[str, Any], calls: int) -> None:
    """The error comes with its reason and its delay."""
    with playing(play) as gateway, pytest.raises(triptych.TriptychError) as raised:
        client.events(gateway.address, **{"retries": 2, **options})
    assert len(gateway.chats) == calls
    assert raised.value.reason in ("DECODER_UNAVAILABLE", "QUEUE_FULL")
    assert raised.value.retry_after is not None


def test_an_accepted_request_is_not_tried_again(client: Blocking | Asyncio) -> None:
    """`Accepted` is an event: the answer has begun."""
    accepted = threading.Event()
    with playing(_failing(9, DOWN, behind=accepted)) as gateway, pytest.raises(triptych.TriptychError) as raised:
        client.events(gateway.address, retries=2, heard=lambda event: accepted.set(), report_progress=True)
    assert len(gateway.chats) == 1
    assert raised.value.reason == "DECODER_UNAVAILABLE"


def test_another_gateway_is_called_where_one_does_not_answer(client: Blocking | Asyncio) -> None:
    """At once and without retries, in whatever order the client takes them, and for every method."""
    with hold_port("127.0.0.1", 0) as held, playing(_play) as gateway:
        absent = f"127.0.0.1:{held.getsockname()[1]}"
        for _ in range(4):
            assert client.call([absent, gateway.address], "answer").text == "A cat."
            assert client.call(f"{absent}, {gateway.address}", "count").prompt_tokens == 0
    assert (len(gateway.chats), len(gateway.counts)) == (4, 4)


def test_gateways_that_do_not_answer_are_a_typed_error(client: Blocking | Asyncio) -> None:
    """The reason is not gRPC's, and the message names an address."""
    with hold_port("127.0.0.1", 0) as one, hold_port("127.0.0.1", 0) as other:
        addresses = [f"127.0.0.1:{held.getsockname()[1]}" for held in (one, other)]
        with pytest.raises(triptych.TriptychError) as raised:
            client.call(addresses, "answer")
    assert (raised.value.code, raised.value.reason) == (triptych.Code.UNAVAILABLE, "GATEWAY_UNAVAILABLE")
    assert raised.value.retry_after is not None
    assert any(address in raised.value.message for address in addresses)


def test_a_gateway_that_is_busy_elsewhere_is_tried_after_its_delay(client: Blocking | Asyncio) -> None:
    """What a gateway itself says is UNAVAILABLE may be so behind the other one, too: no retry without a delay."""
    with playing(_failing(9, DOWN)) as one, playing(_failing(9, DOWN)) as other:
        with pytest.raises(triptych.TriptychError, match="no decoder"):
            client.call([one.address, other.address], "answer")
        assert len(one.chats) + len(other.chats) == 1
        with pytest.raises(triptych.TriptychError, match="no decoder"):
            client.call([one.address, other.address], "answer", retries=1)
        assert len(one.chats) + len(other.chats) == 3
        assert one.chats
        assert other.chats


def test_a_gateway_that_restarts_is_a_delay(client: Blocking | Asyncio) -> None:
    """With the default retries, a call in between comes through."""
    with hold_port("127.0.0.1", 0) as held, ThreadPoolExecutor(1) as thread:
        port = held.getsockname()[1]
        answer = thread.submit(client.call, f"127.0.0.1:{port}", "answer", retries=DEFAULT_RETRIES)
        held.close()
        with playing(_play, port=port):
            assert answer.result(SECONDS).text == "A cat."


def test_addresses() -> None:
    """Several by commas or as a list; a name that gRPC resolves to several servers is one."""
    assert addresses_of("a:1") == ("a:1",)
    assert addresses_of("a:1, [::1]:2") == ("a:1", "[::1]:2")
    assert addresses_of(["a:1", "b:2"]) == ("a:1", "b:2")
    assert addresses_of("ipv4:10.0.0.1:1,10.0.0.2:1") == ("ipv4:10.0.0.1:1,10.0.0.2:1",)


@pytest.mark.parametrize(
    ("address", "kind"),
    [(None, TypeError), (5, TypeError), ([None], TypeError), ("", ValueError), ("a:1,", ValueError)],
)
def test_what_is_no_address(address: Any, kind: type[Exception]) -> None:
    """It is refused when the client is made."""
    with pytest.raises(kind, match="address"):
        triptych.Client(address)


def test_each_gateway_is_called_once_in_an_attempt() -> None:
    """The delays begin when all have been called."""
    absent = triptych.TriptychError(triptych.Code.UNAVAILABLE, GATEWAY_UNAVAILABLE, "", retry_after=0.5)
    attempts = Attempts(1, None, gateways=3)
    delays = [attempts.delay(absent) for _ in range(6)]
    assert (delays[0], delays[1], delays[3], delays[4], delays[5]) == (0, 0, 0, 0, None)
    assert (delays[2] or 0) >= 0.5


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"timeout": "x"}, TypeError),
        ({"timeout": float("inf")}, ValueError),
        ({"timeout": float("nan")}, ValueError),
        ({"timeout": -1}, ValueError),
        ({"model": 5}, TypeError),
        ({"request_id": b"r"}, TypeError),
    ],
)
def test_an_option_of_another_type_is_named(
    client: Blocking | Asyncio, options: dict[str, Any], kind: type[Exception]
) -> None:
    """Before anything is sent."""
    for method in ("answer", "count"):
        with pytest.raises(kind, match=f"{next(iter(options))} is "):
            client.call("127.0.0.1:1", method, **options)


def test_the_published_service_config_retries() -> None:
    """Clients of gRPC alone retry with the JSON of docs/wire.md what the Python client retries."""
    page = (Path(__file__).parents[2] / "docs" / "wire.md").read_text(encoding="utf-8")
    config = page.partition("```json\n")[2].partition("```")[0]
    request = gateway_pb2.ChatRequest()
    for options, calls in (([("grpc.service_config", config)], 3), ([], 1)):
        with (
            playing(_failing(2, DOWN, accepts=False)) as gateway,
            grpc.insecure_channel(gateway.address, options) as to,
        ):
            answer = gateway_pb2_grpc.GatewayStub(to).Chat(request, timeout=SECONDS)
            if options:
                assert [event.WhichOneof("event") for event in answer] == ["started", "delta", "finished"]
            else:  # negative control
                with pytest.raises(grpc.RpcError):
                    list(answer)
            assert len(gateway.chats) == calls


async def _reason_of_silence(stage: str) -> str:
    """The reason of the error of a call whose messages the event loop no longer reads."""
    triptych.client._GRACE_SECONDS = 0.0
    loop: Any = asyncio.get_running_loop()
    readers: list[tuple[Any, Callable[[], object]]] = []
    add_reader = loop.add_reader

    def note(fd: Any, callback: Any, *arguments: Any) -> None:
        readers.append((fd, callback))
        add_reader(fd, callback, *arguments)

    loop.add_reader = note
    with playing(lambda request, context: answered()) as gateway:
        async with triptych.AsyncClient(gateway.address, retries=0) as client:
            ((fd, callback),) = readers
            if stage != "within the answer":
                loop.remove_reader(fd)
            try:
                if stage == "a count":
                    await client.count(MESSAGES, timeout=0.5)
                async for _ in client.chat(MESSAGES, timeout=0.5):
                    loop.remove_reader(fd)
            except triptych.TriptychError as error:
                return error.reason
            finally:
                add_reader(fd, callback)  # so that the client can be closed
    return "the call has ended well"


def _run_silence(stage: str) -> str:
    return asyncio.run(_reason_of_silence(stage))


@pytest.mark.parametrize("stage", ["before the first event", "within the answer", "a count"])
def test_a_deadline_holds_where_grpc_brings_nothing(stage: str) -> None:
    """The deadline of gRPC itself comes by the way of the messages. Apart, since any other loop would read them."""
    assert apart(_run_silence, stage) == Reason.DEADLINE_EXCEEDED.name


def test_delays_double_and_keep_to_the_deadline() -> None:
    """From the server's delay, or from half a second."""
    endless = Attempts(3, None)
    delays = [endless.delay(unavailable(Reason.DECODER_UNAVAILABLE, "", retry_after=2.0)) for _ in range(4)]
    assert delays.pop() is None
    assert [least <= (delay or 0) <= 1.25 * least for least, delay in zip((2, 4, 8), delays, strict=True)] == [True] * 3
    silent = triptych.TriptychError(triptych.Code.UNAVAILABLE, "UNAVAILABLE", "")
    assert 0.5 <= (Attempts(1, 60).delay(silent) or 0) <= 0.625
    assert Attempts(1, 0.4).delay(silent) is None


def test_a_message_over_the_limit_is_a_sentence(client: Blocking | Asyncio) -> None:
    """With both sizes, also for programs, in the place of gRPC's own words."""
    with playing(_play, max_message_bytes=1 << 20) as gateway, pytest.raises(triptych.TriptychError) as raised:
        client.call(gateway.address, "count", messages=[triptych.user(triptych.Image(b"x" * (5 << 19)))])
    assert (raised.value.reason, raised.value.metadata) == ("BODY_TOO_LARGE", {"limit": str(1 << 20)})
    expected = "the request is 2.5 MiB and the server takes 1.0 MiB: send fewer or smaller images and videos"
    assert raised.value.message == expected


def test_a_message_that_is_over_the_limit_when_unpacked_is_typed() -> None:
    """A few kilobytes that gzip makes 2.5 MiB of: gRPC says neither size."""
    request = gateway_pb2.CountTokensRequest(model="x" * (5 << 19))
    with (
        playing(_play, max_message_bytes=1 << 20) as gateway,
        grpc.insecure_channel(gateway.address, compression=grpc.Compression.Gzip) as channel,
        pytest.raises(grpc.RpcError) as raised,
    ):
        gateway_pb2_grpc.GatewayStub(channel).CountTokens(request, timeout=60)
    assert from_rpc_error(raised.value).reason == "BODY_TOO_LARGE"


def test_a_closed_client_says_so(client: Blocking | Asyncio) -> None:
    """Not with an error of gRPC."""
    with playing(_play) as gateway, pytest.raises(triptych.TriptychError, match="is closed") as raised:
        client.after_close(gateway.address)
    assert raised.value.reason == "CLIENT_CLOSED"


class Shapes(pydantic.BaseModel):
    """What a picture shows."""

    count: int = pydantic.Field(le=9)
    colours: list[str] = []


def _says(text: str, finished: chat_pb2.Finished | None = None) -> Script:
    return lambda request, context: answered(text, finished=finished)


def test_an_answer_becomes_an_instance_of_a_type(client: Blocking | Asyncio) -> None:
    """The request has the type's schema, without further properties; the JSON becomes an instance."""
    with playing(_says('{"count": 3, "colours": ["red"]}')) as gateway:
        assert client.call(gateway.address, "parse", Shapes, max_tokens=50) == Shapes(count=3, colours=["red"])
        (request,) = gateway.chats
    schema = json.loads(request.generation.response_format.json_schema)
    assert schema["additionalProperties"] is False
    assert schema["properties"]["count"] == {"maximum": 9, "title": "Count", "type": "integer"}
    assert request.generation.max_tokens == 50
    with playing(_says("[1, 2]")) as gateway:
        assert client.call(gateway.address, "parse", list[int]) == [1, 2]


def _turns(request: gateway_pb2.ChatRequest, context: Context) -> Iterator[chat_pb2.ChatEvent]:
    """As many answers as are asked for: the texts "0a", "1a" and so on in turns, the last one complete first."""
    answers = range(request.generation.n or 1)
    yield chat_pb2.ChatEvent(started=chat_pb2.Started(request_id="r", model="m", prompt_tokens=9))
    for text in ("", "a"):
        for choice in answers:
            delta = chat_pb2.Delta(text=text or str(choice), token_ids=[choice])
            yield chat_pb2.ChatEvent(delta=delta, choice=choice)
    for choice in reversed(answers):
        call = chat_pb2.ToolCallDelta(id=f"call {choice}", name="f", arguments="{}")
        yield chat_pb2.ChatEvent(tool_call=call, choice=choice)
        usage = chat_pb2.Usage(completion_tokens=2 + choice)
        yield chat_pb2.ChatEvent(finished=chat_pb2.Finished(usage=usage), choice=choice)


def test_several_answers_are_told_apart(client: Blocking | Asyncio) -> None:
    """`answers` has each whole and in order, events have their number, and what returns one answer refuses several."""
    with playing(_turns) as gateway:
        answers = client.call(gateway.address, "answers", n=3)
        (alone,) = client.call(gateway.address, "answers")
        events = client.events(gateway.address, n=2)
        for name, more in (("answer", ()), ("parse", (list[int],))):
            with pytest.raises(TypeError, match="n is 2: call `answers`"):
                client.call(gateway.address, name, *more, n=2)
        assert [request.generation.n for request in gateway.chats] == [3, 0, 2]
        assert client.call(gateway.address, "answer", n=1) == alone
    assert [answer.text for answer in answers] == ["0a", "1a", "2a"]
    assert [answer.token_ids for answer in answers] == [(0, 0), (1, 1), (2, 2)]
    assert [answer.usage.completion_tokens for answer in answers] == [2, 3, 4]
    assert [answer.tool_calls[0].id for answer in answers] == ["call 0", "call 1", "call 2"]
    assert [event.choice for event in events[1:]] == [0, 1, 0, 1, 1, 1, 0, 0]  # type: ignore[union-attr]


def test_an_answer_that_is_missing_is_an_error(client: Blocking | Asyncio) -> None:
    """Of two answers one came: the stream is not complete."""
    with playing(_says("A cat.")) as gateway, pytest.raises(triptych.TriptychError) as caught:
        client.call(gateway.address, "answers", n=2)
    assert caught.value.reason == "ANSWER_INCOMPLETE"


def test_a_raw_prompt_is_sent_in_the_place_of_messages(client: Blocking | Asyncio) -> None:
    """Text or tokens, to a chat and to a count."""
    with playing(_says("A cat.")) as gateway:
        for prompt in (triptych.Prompt("<b>", parse_special=True), triptych.Prompt([1, 2])):
            assert client.call(gateway.address, "answer", messages=prompt).text == "A cat."
            client.call(gateway.address, "count", messages=prompt)
        expected = [
            chat_pb2.Prompt(text="<b>", parse_special=True),
            chat_pb2.Prompt(token_ids=chat_pb2.TokenIds(values=[1, 2])),
        ]
        for sent in (gateway.chats, gateway.counts):
            assert [request.prompt for request in sent] == expected  # type: ignore[attr-defined]
            assert not any(request.messages for request in sent)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("content", "kind"),
    [(b"text", TypeError), ([-1], ValueError), (["a"], TypeError), (5, TypeError), ("\ud800", ValueError)],
)
def test_what_is_no_raw_prompt_is_refused(content: Any, kind: type[Exception]) -> None:
    """At the call, in a sentence."""
    with triptych.Client("127.0.0.1:1") as client, pytest.raises(kind, match="must be text or token ids"):
        client.chat(triptych.Prompt(content))


CUT = chat_pb2.Finished(reason=chat_pb2.FINISH_REASON_LENGTH, usage=chat_pb2.Usage(completion_tokens=7))


@pytest.mark.parametrize(
    ("play", "reason", "said"),
    [
        (_says('{"count": 3', CUT), "ANSWER_CUT", "cut at 7 tokens, before its JSON was complete"),
        (_says('{"count": 10}'), "ANSWER_INVALID", "less than or equal to 9"),
        (_says("Three."), "ANSWER_INVALID", "not of the type"),
    ],
)
def test_what_becomes_no_instance_is_a_clear_error(
    client: Blocking | Asyncio, play: Script, reason: str, said: str
) -> None:
    """It says why, and has the answer."""
    with playing(play) as gateway, pytest.raises(triptych.AnswerError, match=said) as raised:
        client.call(gateway.address, "parse", Shapes)
    assert raised.value.reason == reason
    assert raised.value.answer is not None
    assert raised.value.answer.text


@pytest.mark.parametrize("name", ["answer", "count"])
def test_an_unknown_option_is_a_type_error(client: Blocking | Asyncio, name: str) -> None:
    """A misspelled option is refused like any other keyword of Python's, before anything is sent."""
    with pytest.raises(TypeError, match="there is no option 'max_pixel'"):
        client.call("127.0.0.1:1", name, max_pixel=1000)
    with triptych.Client("127.0.0.1:1") as blocking, pytest.raises(TypeError, match="'max_token'"):
        blocking.chat(MESSAGES, max_token=3)  # type: ignore[call-arg]  # at once, though no event is read


@pytest.mark.parametrize(
    ("value", "kind"), [(-1, ValueError), (1 << 33, ValueError), ("5", TypeError), (1.5, TypeError)]
)
def test_a_number_that_the_wire_cannot_hold_is_named(
    client: Blocking | Asyncio, value: Any, kind: type[Exception]
) -> None:
    """The error says which option it is."""
    with pytest.raises(kind, match="max_pixels is "):
        client.call("127.0.0.1:1", "count", max_pixels=value)
