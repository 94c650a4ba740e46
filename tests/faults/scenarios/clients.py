"""Clients that do not read, and clients that send slowly, beside the steady load."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import Callable, Iterator, Sequence

import psutil

from serving.transport import client_options, open_channel
from tests.faults.asking import Load
from tests.faults.bench import Bench, Row
from tests.faults.services import Replica, healthz
from vlm.v1 import chat_pb2, gateway_pb2, gateway_pb2_grpc

MIB = 1 << 20

_WORDS = [{"role": "user", "content": "Tell a long story."}]
_GONE_SECONDS = 180.0
"""Until when a connection that does nothing must have been closed."""
_MOST_GROWTH = 1100 * MIB
"""Of a gateway's resident memory while the bad clients are there: what `max_buffered_body_bytes` admits by default."""


def _post(body: bytes, *, length: int | None = None) -> bytes:
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body) if length is None else length}\r\n\r\n"  # fmt: skip  # noqa: E501
    return head.encode() + body


@contextlib.contextmanager
def _sockets(replica: Replica, many: int, *, receive: int | None = None) -> Iterator[list[socket.socket]]:
    host, _, port = replica.http.removeprefix("http://").rpartition(":")
    with contextlib.ExitStack() as stack:
        made = []
        for _ in range(many):
            each = stack.enter_context(socket.socket())
            if receive is not None:
                each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
            each.settimeout(5)
            each.connect((host, int(port)))
            each.setblocking(False)
            made.append(each)
        yield made


def _held(replica: Replica, sockets: Sequence[socket.socket]) -> int:
    """How many of these connections the replica still has."""
    ours = {each.getsockname()[1] for each in sockets}
    connections = psutil.Process(replica.pid).net_connections("tcp")
    return sum(bool(c.raddr) and c.raddr.port in ours and c.status == psutil.CONN_ESTABLISHED for c in connections)


class _Watch:
    """Waits until a gateway has let go of bad clients, and measures it meanwhile."""

    def __init__(self, gateway: Replica, row_figures: dict[str, object], problems: list[str]) -> None:
        self._gateway = gateway
        self._figures = row_figures
        self._problems = problems
        self._rss = gateway.usage().rss

    async def until_closed(
        self, sockets: Sequence[socket.socket], trickle: Callable[[socket.socket], None] | None = None
    ) -> None:
        """Wait; those that are still open may send a byte a second."""
        began, largest, slowest = time.monotonic(), 0, 0.0
        while not _held(self._gateway, sockets) and time.monotonic() - began < 10:  # noqa: ASYNC110  # until it has accepted them
            await asyncio.sleep(0.05)
        while (held := _held(self._gateway, sockets)) and time.monotonic() - began < _GONE_SECONDS:
            for each in sockets if trickle else ():
                with contextlib.suppress(OSError):
                    trickle(each)  # type: ignore[misc]  # it is not None here
            asked = time.monotonic()
            try:
                await asyncio.to_thread(healthz, self._gateway.http)
            except OSError as error:
                self._problems.append(f"/healthz failed beside them: {error}")
                break
            slowest = max(slowest, time.monotonic() - asked)
            largest = max(largest, self._gateway.usage().rss)
            await asyncio.sleep(1)
        growth = max(0, largest - self._rss)
        self._figures |= {
            "closed after, s": None if held else round(time.monotonic() - began, 1),
            "memory, MiB more": round(growth / MIB),
            "/healthz, s": round(slowest, 2),
        }
        if held:
            self._problems.append(f"{held} of {len(sockets)} connections were still open after {_GONE_SECONDS:g} s")
        if growth > _MOST_GROWTH:
            self._problems.append(f"the gateway grew by {growth / MIB:.0f} MiB")


async def never_reads(bench: Bench) -> Row:
    """Eight clients ask for long answers, half over each door, and read nothing."""
    deployment = await bench.shared()
    (gateway,) = deployment.gateways_list
    figures: dict[str, object] = {}
    problems: list[str] = []

    async def fault(load: Load) -> None:
        watch = _Watch(gateway, figures, problems)
        request = {"messages": _WORDS, "max_tokens": 7000, "ignore_eos": True, "stream": True}
        request |= {"logprobs": True, "top_logprobs": 20}  # some kilobytes a token, which soon fill all buffers
        body = json.dumps(request).encode()
        with _sockets(gateway, 4, receive=4096) as sockets:
            for each in sockets:
                each.send(_post(body))
            options = [*client_options(gateway.address), ("grpc.use_local_subchannel_pool", 1)]
            async with contextlib.AsyncExitStack() as stack:
                calls = []
                for _ in range(4):
                    channel = await stack.enter_async_context(open_channel(gateway.address, options))
                    chat = gateway_pb2.ChatRequest(
                        messages=[
                            chat_pb2.Message(role=chat_pb2.ROLE_USER, parts=[chat_pb2.Part(text="A long story.")])
                        ],
                        generation=chat_pb2.GenerationOptions(max_tokens=7000, ignore_eos=True, logprobs=20),
                    )
                    calls.append(gateway_pb2_grpc.GatewayStub(channel).Chat(chat, timeout=_GONE_SECONDS - 30))
                await watch.until_closed(sockets)
                for call in calls:
                    call.cancel()

    row = await bench.under_load("never-reads", deployment, fault, clients=8)
    row.figures |= figures
    row.problems += problems
    return row


async def slow_bodies(bench: Bench) -> Row:
    """Bodies that come at a byte a second, headers without an end, and six bodies of 100 MB that stop before it."""
    deployment = await bench.shared()
    (gateway,) = deployment.gateways_list
    figures: dict[str, object] = {}
    problems: list[str] = []

    async def fault(load: Load) -> None:
        watch = _Watch(gateway, figures, problems)
        with _sockets(gateway, 100) as bodies, _sockets(gateway, 100) as headers, _sockets(gateway, 6) as large:
            for each in bodies:
                each.send(_post(b'{"messages": [', length=100_000))
            for each in headers:
                each.send(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX-A: ")
            await asyncio.gather(*(_send_most(each) for each in large))
            slow = {each.fileno() for each in (*bodies, *headers)}

            def trickle(each: socket.socket) -> None:
                if each.fileno() in slow:
                    each.send(b" ")

            await watch.until_closed([*bodies, *headers, *large], trickle)

    row = await bench.under_load("slow-bodies", deployment, fault, clients=8)
    row.figures |= figures
    row.problems += problems
    return row


async def _send_most(each: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(60):
            await loop.sock_sendall(each, _post(b'{"messages": [', length=100_000_000))
            for _ in range(99):
                await loop.sock_sendall(each, b" " * 1_000_000)
