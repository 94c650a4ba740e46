"""Accepts the connections of the HTTP port."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
import time
from collections.abc import Callable

import structlog

from gateway.http.connection import Connection, Connections

log = structlog.get_logger()

_PAUSE_SECONDS = 0.2
_SAY_SECONDS = 10.0
"""While no connection can be accepted: the delay between attempts, and between lines of the log."""

_BACKLOG = 2048
"""Connections that the system keeps until they are accepted."""

_MOST_HANDSHAKES = 256
"""TLS handshakes at once; one more ends the oldest."""

_NOT_NOW = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Acceptor:
    """Accepts connections, as many as may be open.

    asyncio's own server has no limit of connections; without descriptors it logs each of thousands of attempts.

    Args:
        listener: The port.
        make: Makes the protocol of a connection.
        connections: The open connections.
        tls: For TLS; None: plain text.
        handshake_seconds: Time for the TLS handshake.
    """

    def __init__(
        self,
        listener: socket.socket,
        make: Callable[[], Connection],
        connections: Connections,
        *,
        tls: ssl.SSLContext | None,
        handshake_seconds: float,
    ) -> None:
        listener.setblocking(False)
        listener.listen(_BACKLOG)
        self._listener = listener
        self._make = make
        self._connections = connections
        self._tls = tls
        self._handshake_seconds = handshake_seconds
        self._said = -_SAY_SECONDS
        self._opening: dict[asyncio.Task[None], None] = {}  # the oldest first
        self._accepting = asyncio.create_task(self._accept())

    def close(self) -> None:
        """Accept no more connections."""
        self._accepting.cancel()

    async def wait_closed(self) -> None:
        """Wait until nothing is being accepted."""
        await asyncio.gather(self._accepting, *self._opening, return_exceptions=True)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, _ = await loop.sock_accept(self._listener)
            except OSError as error:
                if error.errno in _NOT_NOW:
                    self._say(error)
                    await asyncio.sleep(_PAUSE_SECONDS)
                continue  # otherwise the client has gone already
            try:
                await self._connections.make_room()
            except asyncio.CancelledError:
                accepted.close()
                raise
            if self._tls is None:
                await self._open(accepted)
            else:  # its handshake must not keep others waiting
                if len(self._opening) >= _MOST_HANDSHAKES:
                    oldest = next(iter(self._opening))
                    del self._opening[oldest]
                    oldest.cancel()
                task = loop.create_task(self._open(accepted))
                self._opening[task] = None
                task.add_done_callback(self._opened)

    async def _open(self, accepted: socket.socket) -> None:
        # A handshake that fails is the client's; asyncio closes the connection.
        with contextlib.suppress(OSError):
            await asyncio.get_running_loop().connect_accepted_socket(
                self._make,
                accepted,
                ssl=self._tls,
                ssl_handshake_timeout=None if self._tls is None else self._handshake_seconds,
            )

    def _opened(self, task: asyncio.Task[None]) -> None:
        self._opening.pop(task, None)

    def _say(self, error: OSError) -> None:
        if time.monotonic() - self._said >= _SAY_SECONDS:
            self._said = time.monotonic()
            log.error("no connection can be accepted", port="http", error=error.strerror)
