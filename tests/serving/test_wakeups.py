"""gRPC's wake-ups do not pile up in a busy event loop, where its poller would block in writing them.

All event loops of a process read them from one socket, so what is counted is counted in a process with one loop.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import fcntl
import socket
import termios
import threading
import time
from collections.abc import Callable
from concurrent import futures
from typing import Any

import grpc
import pytest

from serving.transport import open_channel
from serving.wakeups import all_read_at_once
from tests.processes import apart

_CALLS = 32
_SECONDS = 60
"""Bound of every wait."""


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


async def _left(open_channel: Callable[[str], grpc.aio.Channel]) -> int:
    """Let many calls end within one turn of the loop. Returns how many of their wake-ups remain a few turns later."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, _Loop)
    entered, release = threading.Barrier(_CALLS + 1), threading.Event()

    def echo(request: bytes, context: Any) -> bytes:
        entered.wait(_SECONDS)
        release.wait(_SECONDS)
        return request

    server = grpc.server(futures.ThreadPoolExecutor(_CALLS))
    handler = grpc.unary_unary_rpc_method_handler(echo)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", {"Call": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        async with open_channel(f"127.0.0.1:{port}") as channel:
            (reader,) = loop.sockets
            call: Any = channel.unary_unary("/test.Echo/Call")
            calls = [call(b"x", timeout=_SECONDS) for _ in range(_CALLS)]
            await asyncio.to_thread(entered.wait, _SECONDS)
            release.set()
            until = time.monotonic() + _SECONDS
            while _waiting(reader) < _CALLS:  # the turn takes as long
                assert time.monotonic() < until
            for _ in range(3):
                await asyncio.sleep(0)
            left = _waiting(reader)
            assert await asyncio.gather(*calls) == [b"x"] * _CALLS
    finally:
        server.stop(None).wait(_SECONDS)
    return left


def _run(open_channel: Callable[[str], grpc.aio.Channel]) -> int:
    with asyncio.Runner(loop_factory=_Loop) as runner:
        return runner.run(_left(open_channel))


def test_wakeups_are_read_at_once() -> None:
    """However many operations complete in a turn."""
    assert apart(_run, open_channel) == 0


def test_grpc_alone_reads_one_wakeup_in_a_turn() -> None:
    """If this fails, gRPC reads all itself, and `serving.wakeups` can go."""
    assert apart(_run, grpc.aio.insecure_channel) >= _CALLS - 4


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
