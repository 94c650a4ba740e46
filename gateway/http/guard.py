"""ASGI middleware around every HTTP request: the counterpart of `serving.interceptors`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.http.errors import response_of
from gateway.keys.access import KEY_HEADERS
from serving.calls import REQUEST_ID_HEADER, accept_request_id, observe
from serving.errors import Reason, ServiceError, failure, invalid

log = structlog.get_logger()

MAX_HEADER_BYTES = 16 * 1024
"""Of a request's line and headers together."""

_MAX_HEADERS = 100


class Guard:
    """Gives every request an id, checks its headers, counts and logs it.

    Args:
        app: What answers.
        paths: The paths that it serves; others share one label in the metrics.
        quiet: Paths of health checks and scrapes, which arrive every few seconds and are not part of the load: they are
            neither counted nor logged.
    """

    def __init__(self, app: ASGIApp, *, paths: Collection[str], quiet: Collection[str]) -> None:
        self._app = app
        self._paths = paths
        self._quiet = quiet

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        method = f"{scope['method']} {scope['path']}" if scope["path"] in self._paths else "HTTP other"
        request_id = ""
        with observe(method, "gone", quiet=scope["path"] in self._quiet) as call:

            async def send_with_id(message: Message) -> None:
                if message["type"] == "http.response.start":
                    call.code = str(message["status"])
                    if request_id:
                        MutableHeaders(scope=message)[REQUEST_ID_HEADER] = request_id
                await send(message)

            try:
                given = Headers(scope=scope).get(REQUEST_ID_HEADER, "")
                request_id = accept_request_id(given, path=REQUEST_ID_HEADER)
                scope["request_id"] = request_id
                _check_headers(scope)
                await self._app(scope, receive, send_with_id)
                call.code = str(scope.get("late_status", call.code))  # of a stream that failed after its status
            except ServiceError as error:  # raised just above: those of the application are answered by `_failed`
                await response_of(error)(scope, receive, send_with_id)
            except Exception:  # as in serving.interceptors
                call.code = "500"
                log.exception("request failed unexpectedly", method=method)


def _check_headers(scope: Scope) -> None:
    headers = scope["headers"]
    length = (
        len(scope["raw_path"]) + len(scope["query_string"]) + sum(len(name) + len(value) for name, value in headers)
    )
    if length > MAX_HEADER_BYTES or len(headers) > _MAX_HEADERS:
        message = f"the headers are over {MAX_HEADER_BYTES} bytes, or over {_MAX_HEADERS}"
        raise failure(Reason.HEADERS_TOO_LARGE, message)
    names = Counter(name for name, _ in headers)
    for name in KEY_HEADERS:
        if names[name.encode()] > 1:
            # A proxy in front may have checked another one.
            raise invalid(name, "is sent more than once; send one")
    if {b"content-length", b"transfer-encoding"} <= names.keys():
        # A proxy in front may have chosen the other one, and have taken the rest for another request.
        raise invalid("content-length", "is set besides transfer-encoding; send one of them")
