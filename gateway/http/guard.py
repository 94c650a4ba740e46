"""ASGI middleware around every HTTP request: the counterpart of `serving.interceptors`."""

from __future__ import annotations

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.http.errors import response_of
from serving.calls import REQUEST_ID_HEADER, accept_request_id, observe
from serving.errors import Reason, ServiceError, overloaded

log = structlog.get_logger()


class Guard:
    """Gives every request an id, counts and logs it, and refuses it when there are too many.

    Args:
        app: What answers.
        paths: The paths that it serves; others share one label in the metrics.
        max_requests: Most requests at once.
    """

    def __init__(self, app: ASGIApp, *, paths: set[str], max_requests: int) -> None:
        self._app = app
        self._paths = paths
        self._max_requests = max_requests
        self._running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        method = f"{scope['method']} {scope['path']}" if scope["path"] in self._paths else "HTTP other"
        request_id = ""
        # Health checks and scrapes arrive every few seconds and are not part of the load.
        with observe(method, "gone", quiet=scope["path"] in ("/healthz", "/health", "/livez", "/metrics")) as call:

            async def send_with_id(message: Message) -> None:
                if message["type"] == "http.response.start":
                    call.code = str(message["status"])
                    if request_id:
                        MutableHeaders(scope=message)[REQUEST_ID_HEADER] = request_id
                await send(message)

            self._running += 1
            try:
                given = Headers(scope=scope).get(REQUEST_ID_HEADER, "")
                request_id = accept_request_id(given, path=REQUEST_ID_HEADER)
                scope["request_id"] = request_id
                if self._running > self._max_requests:
                    message = f"the limit of {self._max_requests} requests at once is reached (max_concurrent_rpcs)"
                    raise overloaded(Reason.TOO_MANY_CALLS, message, retry_after=1.0)
                await self._app(scope, receive, send_with_id)
                call.code = str(scope.get("late_status", call.code))  # of a stream that failed after its status
            except ServiceError as error:  # raised just above: those of the application are answered by `_failed`
                await response_of(error)(scope, receive, send_with_id)
            except Exception:  # as in serving.interceptors
                call.code = "500"
                log.exception("request failed unexpectedly", method=method)
            finally:
                self._running -= 1
