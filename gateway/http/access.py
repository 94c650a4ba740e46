"""HTTP's side of `gateway.keys.access`, as ASGI middleware."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.http.errors import response_of
from gateway.keys.access import FOR_METRICS, FOR_USERS, REFUSED, Access, Admitted
from serving.errors import ServiceError

METRICS_PATH = "/metrics"


class KeyCheck:
    """Refuses requests without a valid key or over a limit, before their bodies are read.

    It stands within the CORS middleware: a browser's preflight has no key, and a page may read why it was refused.

    Args:
        app: What answers. It finds the `Admitted` in its scope, but for the open paths and metrics.
        access: Decides.
        open_paths: Paths that need no key and have no limits.
    """

    def __init__(self, app: ASGIApp, access: Access, open_paths: Collection[str]) -> None:
        self._app = app
        self._access = access
        self._open_paths = open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["path"] in self._open_paths:
            await self._app(scope, receive, send)
            return
        scraping = scope["path"] == METRICS_PATH
        headers: Mapping[str, str] = {}
        with contextlib.ExitStack() as stack:
            try:
                caller = self._access.caller(Headers(scope=scope).get, FOR_METRICS if scraping else FOR_USERS)
                if caller.key:
                    structlog.contextvars.bind_contextvars(key=caller.key)
                if not scraping:
                    client = self._access.client(caller, (scope.get("client") or ("", 0))[0])
                    try:
                        stack.enter_context(client.request())
                    finally:
                        headers = client.headers()
                    scope["admitted"] = Admitted(caller.tenant, client)
            except ServiceError as error:
                REFUSED.labels(error.reason).inc()
                await response_of(error)(scope, receive, _with(headers, send))
                return
            await self._app(scope, receive, _with(headers, send))


def _with(headers: Mapping[str, str], send: Send) -> Send:
    if not headers:
        return send

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(headers)
        await send(message)

    return send_with_headers
