"""Errors in the form of OpenAI's API."""

from __future__ import annotations

import json
import math
from typing import Any

from starlette.responses import JSONResponse

from serving.errors import Code, Reason, ServiceError

_STATUS = {
    Code.INVALID_ARGUMENT: 400,
    Code.UNAUTHENTICATED: 401,
    Code.PERMISSION_DENIED: 403,
    Code.NOT_FOUND: 404,
    Code.FAILED_PRECONDITION: 503,
    Code.DEADLINE_EXCEEDED: 504,
    Code.CANCELLED: 499,
    Code.UNIMPLEMENTED: 400,  # SDKs retry after a 5xx, and routers remove the server
    Code.UNAVAILABLE: 503,
    Code.INTERNAL: 500,
}


_LEAST_SERVER_ERROR = 500

_STATUSES = {Reason.RECEIVE_TIMEOUT.name: 408, Reason.HEADERS_TOO_LARGE.name: 431}

# What OpenAI's clients look for when a prompt is too long, and when a key is missing or wrong.
_CODES = {
    Reason.PROMPT_TOO_LONG.name: "context_length_exceeded",
    Reason.KEY_MISSING.name: "invalid_api_key",
    Reason.KEY_INVALID.name: "invalid_api_key",
}


def status_of(error: ServiceError) -> int:
    """The HTTP status of an error."""
    if error.reason == Reason.PROMPT_TOO_LONG.name:
        return 400
    if error.reason in _STATUSES:
        return _STATUSES[error.reason]
    if error.code is Code.RESOURCE_EXHAUSTED:  # full now, or over a fixed limit
        return 413 if error.retry_after is None else 429
    return _STATUS[error.code]


def body_of(error: ServiceError) -> dict[str, Any]:
    """The JSON of an error."""
    status = status_of(error)
    kind = {404: "not_found_error", 429: "rate_limit_error"}.get(
        status, "invalid_request_error" if status in (400, 401, 403, 408, 413, 415, 431) else "server_error"
    )
    return {
        "error": {
            "message": error.message,
            "type": kind,
            "param": error.violations[0].field if error.violations else None,
            "code": _CODES.get(error.reason, error.reason.lower()),
        }
    }


def json_bytes(body: dict[str, Any]) -> bytes:
    """A JSON object as it is sent."""
    return json.dumps(body).encode()


def response_of(error: ServiceError) -> JSONResponse:
    """The response to a request that failed before anything was sent."""
    status = status_of(error)
    headers = {}
    if error.code is Code.UNAUTHENTICATED:
        headers["www-authenticate"] = "Bearer"
    if error.retry_after is not None:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after)))
    elif status < _LEAST_SERVER_ERROR:
        headers["x-should-retry"] = "false"  # OpenAI's SDKs obey it
    return JSONResponse(body_of(error), status, headers)


def event_of(error: ServiceError) -> bytes:
    """The last event of a stream that fails in the middle."""
    return b"data: " + json_bytes(body_of(error)) + b"\n\n"
