"""Clients that do what no gRPC library does: each is answered or cut off, and harms no other."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import logging
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from serving import interceptors
from serving.connections import raise_descriptor_limit, within_descriptors
from serving.errors import Code
from serving.health import Health
from serving.server import Service, serve
from serving.settings import MIB, ServerSettings
from serving.status import from_rpc_error
from serving.transport import open_channel
from tests.serving import http2
from vlm.v1 import decoder_pb2, gateway_pb2, vision_pb2, vision_pb2_grpc

SOON = 0.2
GET_ENCODER = "/vlm.v1.VisionEncoder/GetEncoder"
ENCODE = "/vlm.v1.VisionEncoder/Encode"

SERVICES = [
    module.DESCRIPTOR.services_by_name[name]
    for module, name in [
        (gateway_pb2, "Gateway"),
        (vision_pb2, "VisionEncoder"),
        (decoder_pb2, "Decoder"),
        (health_pb2, "Health"),
        (reflection_pb2, "ServerReflection"),
    ]
]
METHODS = {
    f"/{method.containing_service.full_name}/{method.name}": method for one in SERVICES for method in one.methods
}


class Everything(Service):
    """Every method of the three services; a stream of requests is read to its end."""

    name = "everything"
    grpc_names = tuple(one.full_name for one in SERVICES[:3])

    def __init__(self) -> None:
        self.encoding = asyncio.Event()
        self.ended = asyncio.Event()

    async def start(self, set_serving: Any) -> None:
        pass

    def register(self, server: grpc.aio.Server) -> None:
        from google.protobuf import message_factory

        for service in SERVICES[:3]:
            handlers = {}
            for method in service.methods:
                request = message_factory.GetMessageClass(method.input_type)
                make = getattr(
                    grpc,
                    f"{'stream' if method.client_streaming else 'unary'}_"
                    f"{'stream' if method.server_streaming else 'unary'}_rpc_method_handler",
                )
                response = message_factory.GetMessageClass(method.output_type)
                handlers[method.name] = make(
                    self._streaming(response) if method.server_streaming else self._unary(response),
                    request_deserializer=request.FromString,
                    response_serializer=response.SerializeToString,
                )
            handler = grpc.method_handlers_generic_handler(service.full_name, handlers)
            server.add_generic_rpc_handlers((handler,))

    def _streaming(self, response: Any) -> Any:
        async def answer(request: Any, context: Any) -> AsyncIterator[Any]:
            if hasattr(request, "__aiter__"):
                async for _ in request:
                    pass
            if response is not vision_pb2.EncodeResponse:
                yield response()
                return
            self.encoding.set()
            try:
                while True:
                    yield vision_pb2.EncodeResponse(chunk={"data": b"x" * 50_000})
            finally:
                self.ended.set()

        return answer

    def _unary(self, response: Any) -> Any:
        async def answer(request: Any, context: Any) -> Any:
            if hasattr(request, "__aiter__"):
                async for _ in request:
                    pass
            return response()

        return answer

    async def stop(self) -> None:
        pass


@contextlib.asynccontextmanager
async def running(service: Service | None = None, **settings: Any) -> AsyncIterator[int]:
    """A server: its port."""
    stop, port = asyncio.Event(), asyncio.get_running_loop().create_future()
    chosen = ServerSettings(**{"grace_seconds": 0.0, "max_message_bytes": MIB, **settings})
    task = asyncio.create_task(serve(service or Everything(), chosen, on_listening=port.set_result, stop=stop))
    try:
        yield await port
    finally:
        stop.set()
        await task


class Client:
    """A raw connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def send(self, *frames: bytes) -> None:
        self._writer.write(b"".join(frames))

    async def until(self, awaited: bytes) -> None:
        """Read until some bytes come."""
        await self._reader.readuntil(awaited)

    async def end(self) -> None:
        """Read until the server closes the connection."""
        with contextlib.suppress(ConnectionError):
            while await self._reader.read(1 << 16):
                pass


@contextlib.asynccontextmanager
async def connected(port: int) -> AsyncIterator[Client]:
    """A connection to the server."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield Client(reader, writer)
    finally:
        writer.transport.abort()


async def served(port: int) -> None:
    """A proper client is answered."""
    async with open_channel(f"127.0.0.1:{port}") as channel:
        stub = vision_pb2_grpc.VisionEncoderStub(channel)
        await stub.GetEncoder(vision_pb2.GetEncoderRequest(), wait_for_ready=True)


async def test_a_connection_without_a_call_is_closed() -> None:
    """One that sends nothing, half a handshake, or no call after it; proper clients are served."""
    async with (
        running(handshake_timeout_seconds=SOON, idle_timeout_seconds=SOON) as port,
        contextlib.AsyncExitStack() as stack,
    ):
        clients = [await stack.enter_async_context(connected(port)) for _ in range(4)]
        for client, sent in zip(
            clients, (b"", http2.PREFACE[:9], http2.PREFACE, http2.PREFACE + http2.settings()), strict=True
        ):
            client.send(sent)
        for client in clients:
            await client.end()
        await served(port)


async def test_connections_are_limited() -> None:
    """More than the limit are closed at once; those that are idle make room in time."""
    settings = {"max_connections": 3, "idle_timeout_seconds": SOON, "handshake_timeout_seconds": SOON}
    async with running(**settings) as port, contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(port)) for _ in range(8)]
        await served(port)  # waits until it is
        for client in clients:
            await client.end()


def test_connections_leave_descriptors_for_the_service() -> None:
    """However many are asked for, within the limit of open files."""
    raise_descriptor_limit()
    most = within_descriptors(1 << 30)
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert soft == hard
    assert 2 * most < soft
    assert within_descriptors(1) == 1


@pytest.mark.parametrize("path", METHODS)
@pytest.mark.parametrize("sent", [b"\xff\xff\xff", b"\x0a\xff"], ids=["rubbish", "truncated"])
async def test_a_malformed_message_is_typed(path: str, sent: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """On every method of every service, and without a traceback."""
    async with running(reflection=True) as port, open_channel(f"127.0.0.1:{port}") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await _any_call(channel, path, sent)
    error = from_rpc_error(caught.value)
    assert (error.code, error.reason) == (Code.INVALID_ARGUMENT, "MESSAGE_MALFORMED")
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_text_that_is_not_utf_8_is_typed() -> None:
    """In a string field of a message that is well-formed otherwise."""
    async with running() as port, open_channel(f"127.0.0.1:{port}") as channel:
        number = gateway_pb2.ChatRequest.DESCRIPTOR.fields_by_name["request_id"].number
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await _any_call(channel, "/vlm.v1.Gateway/Chat", bytes((number << 3 | 2, 2, 0xFF, 0xFE)))
    assert from_rpc_error(caught.value).reason == "MESSAGE_MALFORMED"


async def _any_call(channel: grpc.aio.Channel, path: str, *messages: bytes) -> list[bytes]:
    async def sending() -> AsyncIterator[bytes]:
        for one in messages:
            yield one

    return [response async for response in channel.stream_stream(path)(sending())]


async def test_a_call_without_a_message_is_typed() -> None:
    """A unary call that ends before its message."""
    async with running() as port, open_channel(f"127.0.0.1:{port}") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await _any_call(channel, GET_ENCODER)
    assert from_rpc_error(caught.value).reason == "MESSAGE_MALFORMED"


async def test_a_message_that_does_not_arrive_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A unary call whose message does not come, or only half, ends with a typed error."""
    monkeypatch.setattr(interceptors, "_LEAST_BYTES_PER_SECOND", MIB / SOON)
    async with running(receive_timeout_seconds=SOON) as port, connected(port) as client:
        client.send(http2.PREFACE, http2.settings(), http2.call(GET_ENCODER), http2.call(GET_ENCODER, stream=3))
        client.send(http2.message(b"x" * 100, stream=3, end=False)[:-50])
        await client.until(b"receive_timeout_seconds")


async def test_calls_without_a_message_exclude_nobody() -> None:
    """As many as there are places, and more: the oldest makes room, and a call with its message is served."""
    async with running(max_concurrent_rpcs=3) as port, connected(port) as client:
        client.send(http2.PREFACE, http2.settings(), *(http2.call(GET_ENCODER, stream=2 * n + 1) for n in range(8)))
        await client.until(b"has not arrived")
        await served(port)


async def test_a_client_that_reads_nothing_ends_its_own_call() -> None:
    """The handler ends though the call has no deadline, and its place is free."""
    service = Everything()
    async with running(service, send_timeout_seconds=SOON, max_concurrent_rpcs=1) as port, connected(port) as client:
        client.send(http2.PREFACE, http2.settings(initial_window_size=0))
        client.send(http2.call(ENCODE), http2.message(b""))
        await service.encoding.wait()
        await service.ended.wait()
        await served(port)


async def test_watchers_of_health_that_do_not_read_delay_no_change() -> None:
    """A server whose watchers read nothing stops all the same; unknown names are kept nowhere."""
    async with running() as port, connected(port) as client:
        request = health_pb2.HealthCheckRequest(service="unknown").SerializeToString()
        client.send(http2.PREFACE, http2.settings(initial_window_size=0))
        for stream in (1, 3):
            sent = b"" if stream == 1 else request
            client.send(http2.call("/grpc.health.v1.Health/Watch", stream=stream), http2.message(sent, stream=stream))
        await served(port)


async def test_a_full_server_answers_health_checks() -> None:
    """`Check` is not counted, and streams of health do not take the places of calls."""
    service = Everything()
    async with running(service, max_concurrent_rpcs=1) as port, open_channel(f"127.0.0.1:{port}") as channel:
        call = vision_pb2_grpc.VisionEncoderStub(channel).Encode(vision_pb2.EncodeRequest())
        await call.read()
        stub = health_pb2_grpc.HealthStub(channel)
        assert (await stub.Check(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await vision_pb2_grpc.VisionEncoderStub(channel).GetEncoder(vision_pb2.GetEncoderRequest())
        assert from_rpc_error(caught.value).reason == "TOO_MANY_CALLS"
        call.cancel()


async def test_unknown_services_have_no_health() -> None:
    """`Check` is NOT_FOUND, and `Watch` says SERVICE_UNKNOWN, as the protocol demands."""
    async with running() as port, open_channel(f"127.0.0.1:{port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Check(health_pb2.HealthCheckRequest(service="unknown"))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        watch = stub.Watch(health_pb2.HealthCheckRequest(service="unknown"))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        watch.cancel()


@pytest.mark.parametrize(
    ("frames", "status"),
    [
        (http2.call("/vlm.v1.Gateway/Nothing") + http2.message(b""), b"12"),
        (http2.call("nothing") + http2.message(b""), b"12"),
        (http2.call("/a/b/c") + http2.message(b""), b"12"),
        (http2.call(GET_ENCODER, more=[("grpc-timeout", "1x")]) + http2.message(b""), None),
        (http2.call(GET_ENCODER, kind="text/plain") + http2.message(b""), None),
        (http2.call(GET_ENCODER, more=[("x-long", "x" * 40_000)]) + http2.message(b""), None),
        (http2.call(GET_ENCODER) + http2.message(b"\0" * (2 * MIB)), b"8"),
        (
            http2.call(GET_ENCODER, more=[("grpc-encoding", "gzip")])
            + http2.message(gzip.compress(b"\0" * (64 * MIB)), compressed=True),
            b"8",
        ),
        (http2.call(GET_ENCODER, more=[("grpc-encoding", "gzip")]) + http2.message(b"x" * 99, compressed=True), None),
        (http2.call(GET_ENCODER) + http2.message(b"x" * 99, compressed=True), None),
    ],
    ids=["method", "path", "slashes", "timeout", "type", "metadata", "size", "bomb", "no gzip", "no coding"],
)
async def test_a_trick_harms_no_other(frames: bytes, status: bytes | None, caplog: pytest.LogCaptureFixture) -> None:
    """It is refused by gRPC itself, and the server goes on."""
    async with running() as port, connected(port) as client:
        client.send(http2.PREFACE, http2.settings(), frames)
        if status is not None:
            await client.until(b"grpc-status" + bytes((len(status),)) + status)
        await served(port)
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_health_is_set_for_good_by_a_stop() -> None:
    """What a service says while the server stops changes nothing."""
    health = Health(["one"])
    health.set(serving=True)
    health.stop()
    health.set(serving=True)
    answer = await health.Check(health_pb2.HealthCheckRequest(service="one"), None)  # type: ignore[arg-type]
    assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
