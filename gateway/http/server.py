"""uvicorn inside the gateway's own event loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

from gateway.http.acceptor import Acceptor
from gateway.http.connection import Connection, Connections
from gateway.http.guard import MAX_HEADER_BYTES
from serving.connections import ConnectionLimits
from serving.transport import INSECURE, Credentials, open_http_port


class _Server(uvicorn.Server):
    """uvicorn, with its own way to accept connections.

    Args:
        config: uvicorn's settings.
        limits: Limits of the connections.
    """

    def __init__(self, config: uvicorn.Config, limits: ConnectionLimits) -> None:
        super().__init__(config)
        self._limits = limits

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept connections on the sockets."""
        connections = Connections(self._limits.most)

        def make() -> Connection:
            return Connection(self.config, self.server_state, self._limits, connections.entered)

        self.servers = [
            Acceptor(  # type: ignore[misc]  # it has the methods that uvicorn calls
                listener,
                make,
                connections,
                tls=self.config.ssl,
                handshake_seconds=self._limits.handshake_seconds,
            )
            for listener in sockets or []
        ]
        self.started = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Do nothing: `serving.server` handles signals."""
        yield


class HttpServer:
    """An ASGI application on a port.

    Args:
        app: The application.
        grace_seconds: Seconds that running requests may take after `stop`.
        credentials: `credentials.server` is used.
        limits: Limits of the connections. None takes the defaults.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        grace_seconds: float,
        credentials: Credentials = INSECURE,
        limits: ConnectionLimits | None = None,
    ) -> None:
        limits = limits or ConnectionLimits()
        tls = credentials.server
        self._server = _Server(
            uvicorn.Config(
                app,
                http="h11",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=round(grace_seconds),
                timeout_keep_alive=limits.idle_seconds,  # type: ignore[arg-type]  # any number of seconds
                ssl_context_factory=None if tls is None else lambda config, default: tls.http(),
                h11_max_incomplete_event_size=MAX_HEADER_BYTES,
            ),
            limits,
        )
        self._running: asyncio.Task[None] | None = None

    async def start(self, host: str, port: int, *, shared: bool = False) -> int:
        """Listen.

        Args:
            host: Address to listen on.
            port: Port, or 0 for a free one.
            shared: Whether other processes listen on the port, too.

        Returns:
            The port.

        Raises:
            PortError: The port cannot be opened.
        """
        listener = open_http_port(host, port, shared=shared)
        self._running = asyncio.create_task(self._server.serve(sockets=[listener]))
        return int(listener.getsockname()[1])

    async def stop(self) -> None:
        """Refuse new requests, let running ones finish within the grace period, cancel the rest."""
        if self._running is None:
            return
        self._server.should_exit = True
        await self._running
        await asyncio.gather(*self._server.server_state.tasks, return_exceptions=True)
