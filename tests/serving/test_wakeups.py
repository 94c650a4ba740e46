"""gRPC's wake-ups do not pile up in a busy event loop, where its poller would block in writing them."""

from __future__ import annotations

import array
import asyncio
import contextlib
import fcntl
import socket
import termios
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from serving.transport import open_channel
from serving.wakeups import all_read_at_once

_CALLERS = 8
_MOST_WAITING = 12 * _CALLERS
"""More than there are operations that a turn of the loop can complete: a call has at most six on both sides."""


class _Loop(asyncio.SelectorEventLoop):
    """An event loop that notes sockets with readers."""

    def __init__(self) -> None:
        super().__init__()
        self.sockets: list[socket.socket] = []

    def add_reader(self, fd: Any, callback: Callable[..., object], *arguments: Any) -> None:
        super().add_reader(fd, callback, *arguments)
        self.sockets.append(fd)


def _waiting(reader: socket.socket) -> int:
    """Bytes in a socket."""
    count = array.array("i", [0])
    fcntl.ioctl(reader.fileno(), termios.FIONREAD, count)
    return count[0]


async def _echo(request: bytes, context: Any) -> bytes:
    return request


async def _most_waiting(open_channel: Callable[[str], grpc.aio.Channel]) -> int:
    """Call a server from a loop whose every turn has other work. Returns the most wake-ups that waited."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, _Loop)
    most, busy = 0, True

    def work() -> None:
        nonlocal most
        sum(range(100_000))  # two milliseconds, in which several operations complete
        most = max(most, _waiting(loop.sockets[-1]))
        if busy:
            loop.call_soon(work)

    channel = open_channel("unix:/nowhere")  # the first of its loop, so that gRPC adds its reader now
    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(_echo)  # type: ignore[arg-type]  # typed for blocking servers
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", {"Call": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with channel, open_channel(f"127.0.0.1:{port}") as calls:
        echo: Any = calls.unary_unary("/test.Echo/Call")

        async def caller() -> None:
            for _ in range(15):
                assert await echo(b"x", timeout=60) == b"x"

        work()
        await asyncio.gather(*(caller() for _ in range(_CALLERS)))
        busy = False
    await server.stop(0)
    return most


def _run(open_channel: Callable[[str], grpc.aio.Channel]) -> int:
    with asyncio.Runner(loop_factory=_Loop) as runner:
        return runner.run(_most_waiting(open_channel))


def test_wakeups_are_read_at_once() -> None:
    """However busy the loop is, no more wait than operations are under way."""
    assert _run(open_channel) <= _MOST_WAITING


def test_grpc_alone_reads_one_wakeup_in_a_turn() -> None:
    """Without this gRPC's socket fills up. If this fails, gRPC reads all itself, and `serving.wakeups` can go."""
    assert _run(grpc.aio.insecure_channel) > _MOST_WAITING


async def test_the_event_loop_is_left_as_it_was() -> None:
    """Also by a channel that cannot be made."""
    loop = asyncio.get_running_loop()
    before = loop.add_reader
    with contextlib.suppress(ZeroDivisionError), all_read_at_once():
        assert loop.add_reader != before
        raise ZeroDivisionError
    assert loop.add_reader == before


def test_without_a_running_loop_nothing_happens() -> None:
    """A blocking program may import and make what it likes."""
    with all_read_at_once(), pytest.raises(RuntimeError):
        asyncio.get_running_loop()
