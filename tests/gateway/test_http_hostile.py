"""Clients that do what no HTTP library does, over raw sockets: each is answered or cut off, and harms no other."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import logging
import os
import socket
import sys
import textwrap
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.conductor import Conductor, Policy
from gateway.http import HttpServer, create_app
from gateway.http import body as receiving
from gateway.http.stream import Pace
from gateway.media import RequestLimits
from serving.connections import ConnectionLimits
from tests.gateway.conftest import AT_ONCE
from tests.gateway.fakes import FakeDecoder, FakeVision, GenerateCall, InProcessDecoder, InProcessVision
from tests.gateway.openai_json import HELLO, PATH
from tests.processes import line, started

SOON = 0.2
NEVER = 3600.0
PATIENT = ConnectionLimits(handshake_seconds=NEVER, idle_seconds=NEVER, receive_seconds=NEVER, send_seconds=NEVER)

Start = Callable[..., Any]


@pytest.fixture
async def start(vision: FakeVision, decoder: FakeDecoder) -> AsyncIterator[Start]:
    """Starts a server with given limits: its port."""
    async with contextlib.AsyncExitStack() as stack:

        async def make(*, limits: ConnectionLimits = PATIENT, **options: Any) -> int:
            conductor = Conductor(
                InProcessVision(vision), InProcessDecoder(decoder), RequestLimits(), Policy(backoff=AT_ONCE)
            )
            settings = {"max_body_bytes": 1 << 20, "max_requests": 9, "receive_seconds": limits.receive_seconds}
            app = create_app(
                conductor,
                seconds=NEVER,
                pace=Pace(status_seconds=NEVER, comment_seconds=NEVER),
                **{**settings, **options},
            )
            server = HttpServer(app, grace_seconds=0, limits=limits)
            stack.push_async_callback(server.stop)
            return await server.start("127.0.0.1", 0)

        yield make


class Client:
    """A raw connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes | str) -> None:
        self.writer.write(data if isinstance(data, bytes) else data.encode())
        await self.writer.drain()

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the next response."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        status, *lines = head.split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (one.partition(":") for one in lines if one)}
        body = await self.reader.readexactly(int(headers.get("content-length", 0)))
        return int(status.split()[1]), headers, body

    async def rest(self) -> bytes:
        """All that comes until the server closes the connection."""
        with contextlib.suppress(ConnectionError):
            return await self.reader.read()
        return b""


@contextlib.asynccontextmanager
async def connected(port: int) -> AsyncIterator[Client]:
    """A connection to the server."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield Client(reader, writer)
    finally:
        writer.transport.abort()


def posted(body: bytes, *, length: int | None = None, path: str = PATH, more: str = "") -> bytes:
    """A request with a body, whose announced length may be another."""
    head = f"POST {path} HTTP/1.1\r\nhost: gateway\r\ncontent-length: {len(body) if length is None else length}\r\n"
    return f"{head}{more}\r\n".encode() + body


def chunked(*pieces: bytes) -> bytes:
    """A request with a chunked body, without its end."""
    head = f"POST {PATH} HTTP/1.1\r\nhost: gateway\r\ntransfer-encoding: chunked\r\n\r\n".encode()
    return head + b"".join(f"{len(piece):x}\r\n".encode() + piece + b"\r\n" for piece in pieces)


BODY = json.dumps(HELLO).encode()
GZIPPED = "content-encoding: gzip\r\n"
HEALTH = b"GET /healthz HTTP/1.1\r\nhost: gateway\r\n\r\n"


async def status(port: int, request: bytes) -> int:
    """The status of the answer to a request of its own connection."""
    async with connected(port) as client:
        await client.send(request)
        return (await client.answer())[0]


def reason(body: bytes) -> str:
    """The code of an error."""
    return str(json.loads(body)["error"]["code"])


async def test_a_connection_that_sends_nothing_is_closed(start: Start) -> None:
    """Also one that has been answered, and one in the middle of its headers, which is told why."""
    port = await start(limits=ConnectionLimits(handshake_seconds=SOON, idle_seconds=SOON))
    async with connected(port) as silent, connected(port) as answered, connected(port) as slow:
        await answered.send(HEALTH)
        await slow.send(HEALTH[:-10])
        assert await silent.rest() == b""
        assert (await answered.answer())[0] == 200
        assert await answered.rest() == b""
        code, _, body = await slow.answer()
        assert (code, reason(body)) == (408, "receive_timeout")
        assert await slow.rest() == b""


async def test_headers_that_trickle_in_do_not_extend_their_time(start: Start) -> None:
    """A second request on a connection that sends a header now and then is cut off all the same."""
    port = await start(limits=ConnectionLimits(handshake_seconds=SOON, idle_seconds=NEVER))
    async with connected(port) as client:
        await client.send(HEALTH + HEALTH[:-2])
        assert (await client.answer())[0] == 200

        async def trickle() -> None:
            with contextlib.suppress(ConnectionError):
                while True:
                    await client.send("x-more: 1\r\n")
                    await asyncio.sleep(SOON / 4)

        trickling = asyncio.create_task(trickle())
        assert (await client.answer())[0] == 408
        trickling.cancel()


async def test_a_body_that_does_not_arrive(start: Start) -> None:
    """It is 408, and meanwhile it takes no place from others."""
    port = await start(limits=ConnectionLimits(receive_seconds=SOON, handshake_seconds=SOON), max_requests=1)
    async with connected(port) as half:
        await half.send(posted(BODY[:10], length=len(BODY)))
        assert await status(port, posted(BODY)) == 200
        code, _, body = await half.answer()
        assert (code, reason(body)) == (408, "receive_timeout")
        assert await half.rest() == b""  # the rest of the body is not awaited for ever


async def test_a_large_body_that_stops(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has arrived gives it more time, but not for silence."""
    monkeypatch.setattr(receiving, "_LEAST_BYTES_PER_SECOND", 1)  # half a million seconds
    port = await start(limits=ConnectionLimits(receive_seconds=SOON))
    async with connected(port) as client:
        await client.send(posted(b" " * 500_000, length=900_000))
        assert (await client.answer())[0] == 408


async def test_a_body_that_trickles_in(start: Start) -> None:
    """Bytes that come now and then do not extend its time for long."""
    port = await start(limits=ConnectionLimits(receive_seconds=SOON))
    async with connected(port) as client:
        await client.send(posted(b"", length=900_000))

        async def trickle() -> None:
            with contextlib.suppress(ConnectionError):
                while True:
                    await client.send(b" ")
                    await asyncio.sleep(SOON / 4)

        trickling = asyncio.create_task(trickle())
        assert (await client.answer())[0] == 408
        trickling.cancel()


async def test_bodies_share_their_memory(start: Start) -> None:
    """What one has filled is not there for a second one, which is told to come later; small bodies are served."""
    port = await start(max_buffered_body_bytes=300_000)
    async with connected(port) as first, connected(port) as second:
        await first.send(posted(b" " * 300_000, length=900_000))
        await second.send(posted(b" " * 600_000, length=900_000))
        code, headers, body = await second.answer()
        assert (code, reason(body), headers["retry-after"]) == (429, "body_memory_full", "2")
        assert await status(port, posted(BODY)) == 200
        first.writer.transport.abort()
        code = 429
        while code == 429:  # the server has not noticed yet that the first has left
            code = await status(port, posted(BODY + b" " * 200_000))
        assert code == 200


@pytest.mark.parametrize(
    "request_",
    [
        posted(b"", length=(1 << 20) + 1),
        chunked(*[b" " * 65536] * 17),
        posted(gzip.compress(b" " * (2 << 20)), more=GZIPPED),
    ],
    ids=["announced", "chunked", "bomb"],
)
async def test_a_body_that_is_too_long(start: Start, request_: bytes) -> None:
    """It is 413 as soon as that is known, though the client goes on sending."""
    assert await status(await start(), request_) == 413


async def test_a_full_server_answers_health_checks(start: Start, decoder: FakeDecoder) -> None:
    """With every place taken a request is 429 with a delay, and `/healthz` is answered."""
    running = asyncio.Event()

    async def hook(call: GenerateCall, stage: str) -> None:
        running.set()
        await asyncio.Event().wait()

    decoder.hook = hook
    port = await start(max_requests=1)
    async with connected(port) as client, connected(port) as other:
        await client.send(posted(BODY))
        await running.wait()
        await other.send(posted(b"", length=900_000))  # refused before its body
        code, headers, body = await other.answer()
        assert (code, reason(body), headers["retry-after"]) == (429, "too_many_calls", "1")
        assert await status(port, b"GET /v1/models HTTP/1.1\r\nhost: gateway\r\n\r\n") == 429
        assert await status(port, HEALTH) == 200


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_does_not_read(start: Start, decoder: FakeDecoder, stream: bool) -> None:
    """Its connection is reset, and a generation for it ends."""
    begun = asyncio.Event()

    async def hook(call: GenerateCall, stage: str) -> None:
        begun.set()

    decoder.hook = hook
    decoder.said = [("x" * 100_000, [])] * (1000 if stream else 100)
    port = await start(limits=ConnectionLimits(most=1, send_seconds=SOON))
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", port))
        client.sendall(posted(json.dumps({**HELLO, "stream": stream}).encode()))
        await begun.wait()
        assert await status(port, HEALTH) == 200  # there is no room for a second connection before
        await decoder.calls[0].ended.wait()
        assert decoder.calls[0].complete is not stream


async def test_a_full_port_closes_the_connection_that_is_idle_the_longest(start: Start) -> None:
    """A new one is served, and connections with a request are kept."""
    port = await start(limits=ConnectionLimits(most=4))
    async with contextlib.AsyncExitStack() as stack:
        half = await stack.enter_async_context(connected(port))
        await half.send(posted(BODY[:10], length=len(BODY)))
        idle = [await stack.enter_async_context(connected(port)) for _ in range(3)]
        for client in idle:
            await client.send(HEALTH)
            assert (await client.answer())[0] == 200
        assert await status(port, HEALTH) == 200
        assert await idle[0].rest() == b""
        await half.send(BODY[10:])
        assert (await half.answer())[0] == 200


async def test_half_bodies_on_all_connections_exclude_nobody(start: Start) -> None:
    """With no idle connection left, the oldest whose body is incomplete makes room."""
    port = await start(limits=ConnectionLimits(most=3))
    async with contextlib.AsyncExitStack() as stack:
        half = [await stack.enter_async_context(connected(port)) for _ in range(3)]
        for client in half:
            await client.send(posted(BODY[:10], length=len(BODY), more="expect: 100-continue\r\n"))
            assert (await client.answer())[0] == 100  # so the server is reading the body
        assert await status(port, HEALTH) == 200
        assert await half[0].rest() == b""
        await half[2].send(BODY[10:])
        assert (await half[2].answer())[0] == 200


PROGRAM = textwrap.dedent(
    """
    import asyncio, resource
    from gateway.http import HttpServer
    from starlette.responses import PlainTextResponse

    async def main():
        port = await HttpServer(PlainTextResponse("served"), grace_seconds=0).start("127.0.0.1", 0)
        resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
        print(port, flush=True)
        await asyncio.Event().wait()

    asyncio.run(main())
    """
)


async def test_a_server_without_descriptors_waits_for_one() -> None:
    """It says so once, not once per attempt, and accepts again when one is free."""
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(root / "protos")])}
    with started([sys.executable, "-c", PROGRAM], env=environment, cwd=root, stderr=-2) as process:
        port = int(line(process.stdout, "the port"))
        with contextlib.ExitStack() as stack:
            for _ in range(60):
                stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            assert "no connection can be accepted" in line(process.stdout, "the line of the log")
        assert await status(port, HEALTH) == 200
        process.kill()
        assert process.stdout is not None
        assert process.stdout.read() == b""


GET = "GET {} HTTP/1.1\r\nhost: gateway\r\n"

TRICKS: dict[str, tuple[bytes, set[int]]] = {
    "garbage": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", {400}),
    "http/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {400, 404}),
    "no host": (b"GET /healthz HTTP/1.1\r\n\r\n", {400}),
    "http/1.0": (b"GET /healthz HTTP/1.0\r\n\r\n", {200}),
    "http/0.9": (b"GET /healthz\r\n\r\n", {400}),
    "two lengths": (posted(BODY, more="content-length: 3\r\n"), {400}),
    "same length twice": (posted(BODY, more=f"content-length: {len(BODY)}\r\n"), {200, 400}),
    "two keys": (posted(BODY, more="authorization: Bearer a\r\nAuthorization: Bearer a\r\n"), {400}),
    "two keys of the other header": (posted(BODY, more="x-api-key: a\r\nx-api-key: b\r\n"), {400}),
    "length and chunks": (posted(b"0\r\n\r\n", more="transfer-encoding: chunked\r\n"), {400}),
    "negative length": (posted(BODY, length=-1), {400}),
    "huge length": (posted(b"", length=10**30), {400, 413}),
    "other coding": (posted(b"", more="transfer-encoding: gzip\r\n"), {400}),
    "bad chunk": (chunked(BODY) + b"zz\r\n", {400}),
    "chunks without data": (chunked() + b"0\r\n\r\n", {400}),
    "absolute form": (GET.format("http://other/healthz").encode() + b"\r\n", {200, 404}),
    "authority form": (b"CONNECT gateway:80 HTTP/1.1\r\nhost: gateway\r\n\r\n", {404, 405}),
    "asterisk": (b"OPTIONS * HTTP/1.1\r\nhost: gateway\r\n\r\n", {404, 405}),
    "two slashes": (GET.format("//v1/models").encode() + b"\r\n", {404}),
    "dots": (GET.format("/v1/%2e%2e/healthz").encode() + b"\r\n", {404}),
    "nul": (GET.format("/%00").encode() + b"\r\n", {404}),
    "newline": (GET.format("/%0d%0ax-evil:%201").encode() + b"\r\n", {404}),
    "not utf-8": (GET.format("/%ff%fe").encode() + b"\r\n", {404}),
    "raw bytes": (b"GET /\xff\xfe HTTP/1.1\r\nhost: gateway\r\n\r\n", {400}),
    "slash behind": (b"GET /healthz/ HTTP/1.1\r\nhost: [\r\n\r\n", {307, 400, 404}),
    "odd host": (b"GET /nothing HTTP/1.1\r\nhost: [::1\r\n\r\n", {400, 404}),
    "long path": (GET.format("/" + "x" * 20_000).encode() + b"\r\n", {431}),
    "endless line": (b"GET /" + b"x" * 400_000, {431}),
    "long header": (GET.format("/healthz").encode() + b"x-long: " + b"x" * 20_000 + b"\r\n\r\n", {431}),
    "many headers": (GET.format("/healthz").encode() + b"x: 1\r\n" * 101 + b"\r\n", {431}),
    "folded header": (GET.format("/healthz").encode() + b"x-folded: 1\r\n 2\r\n\r\n", {200, 400}),
    "space before colon": (GET.format("/healthz").encode() + b"x-bad : 1\r\n\r\n", {400}),
    "newline in id": (GET.format("/healthz").encode() + b"x-request-id: a\nlevel=error b\r\n\r\n", {200, 400}),
    "escape in id": (GET.format("/healthz").encode() + b"x-request-id: a\x1b[31m\r\n\r\n", {400}),
    "websocket": (GET.format("/healthz").encode() + b"connection: upgrade\r\nupgrade: websocket\r\n\r\n", {200}),
    "unknown method": (b"BREW /healthz HTTP/1.1\r\nhost: gateway\r\n\r\n", {404, 405}),
    "two gzip members": (posted(gzip.compress(BODY) + gzip.compress(BODY), more=GZIPPED), {400}),
    "truncated gzip": (posted(gzip.compress(BODY)[:-5], more=GZIPPED), {400}),
    "gzip of nothing": (posted(gzip.compress(b""), more=GZIPPED), {400}),
    "no gzip": (posted(BODY, more=GZIPPED), {400}),
    "brotli": (posted(BODY, more="content-encoding: br\r\n"), {400}),
}  # fmt: skip


@pytest.mark.parametrize("name", TRICKS)
async def test_a_trick_is_refused_or_served(
    start: Start, name: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each gets an answer that is no 5xx, leaves no traceback and no line of its own in the log, and harms no other."""
    trick, statuses = TRICKS[name]
    port = await start()
    async with connected(port) as client:
        with contextlib.suppress(ConnectionError):
            await client.send(trick)
        assert (await client.answer())[0] in statuses
    assert await status(port, HEALTH) == 200
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
    logged = capfd.readouterr().out
    assert "Traceback" not in logged
    assert not any(one.startswith(("x-evil", "level=error")) for one in logged.splitlines())


async def test_a_malformed_chunk_after_the_answer_has_begun(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    """The connection is cut off without a traceback."""
    port = await start()
    async with connected(port) as client:
        await client.send(b"POST /nothing HTTP/1.1\r\nhost: gateway\r\ntransfer-encoding: chunked\r\n\r\n")
        assert (await client.answer())[0] == 404
        await client.send(b"zz\r\n")
        assert await client.rest() == b""
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_pipelined_requests_are_answered_in_order(start: Start) -> None:
    """Many at once on one connection."""
    async with connected(await start()) as client:
        await client.send((HEALTH + posted(BODY)) * 20)
        assert [(await client.answer())[0] for _ in range(40)] == [200] * 40


async def test_a_client_that_waits_to_send_its_body_is_told_to(start: Start) -> None:
    """`Expect: 100-continue` gets 100, and a body that would be refused is not sent."""
    port = await start()
    async with connected(port) as client, connected(port) as refused:
        await client.send(posted(b"", length=len(BODY), more="expect: 100-continue\r\n"))
        assert (await client.answer())[0] == 100
        await client.send(BODY)
        assert (await client.answer())[0] == 200
        await refused.send(posted(b"", length=2 << 20, more="expect: 100-continue\r\n"))
        assert (await refused.answer())[0] == 413
