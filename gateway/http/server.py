"""uvicorn inside the gateway's own event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

from serving.transport import INSECURE, Credentials, open_http_port


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Do nothing: `serving.server` handles signals."""
        yield


class HttpServer:
    """An ASGI application on a port.

    Args:
        app: The application.
        grace_seconds: Seconds that running requests may take after `stop`.
        credentials: `credentials.http` is used.
    """

    def __init__(self, app: ASGIApp, *, grace_seconds: float, credentials: Credentials = INSECURE) -> None:
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
                ssl_certfile=credentials.http.certfile,
                ssl_keyfile=credentials.http.keyfile,
            )
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
