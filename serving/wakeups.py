"""Reads all wake-ups of gRPC's asyncio layer at once, so that a busy event loop does not block its poller.

The poller, a thread of gRPC, puts completed operations in a queue and writes a byte for each to a pair of sockets. At a
byte the event loop takes everything in the queue, but grpcio (1.85.3 and before) reads one byte alone. If turns of the
loop take so long that several operations complete in each, the other bytes remain, until about 280 fill the socket.
Then the poller blocks in its write, and goes on when three quarters have been read: one in each turn. Meanwhile nothing
arrives at any call of the process, not even its deadline (docs/decisions/0051-wakeups.md).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
from collections.abc import Callable, Iterator
from typing import Any

_READER = "PollerCompletionQueue._handle_events"

_MOST_BYTES = 4096
"""More than the socket holds."""


@contextlib.contextmanager
def all_read_at_once() -> Iterator[None]:
    """Around the making of a channel or server: gRPC adds its reader to the event loop at the first one.

    There is no effect where gRPC has its reader already, on loops that do not allow it, such as uvloop's, and outside a
    running loop.
    """
    loop: Any
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        yield
        return
    add_reader = loop.add_reader

    def add(reader: Any, callback: Callable[..., object], *arguments: Any) -> None:
        if isinstance(callback, functools.partial) and getattr(callback.func, "__qualname__", "") == _READER:
            callback = functools.partial(_handle, reader, callback)
        add_reader(reader, callback, *arguments)

    try:
        loop.add_reader = add
    except AttributeError:
        yield
        return
    try:
        yield
    finally:
        loop.add_reader = add_reader


def _handle(reader: socket.socket, take: Callable[[], object]) -> None:
    # Before the queue is taken: the byte of an operation that comes too late for it must remain.
    with contextlib.suppress(BlockingIOError):
        reader.recv(_MOST_BYTES)
    take()
