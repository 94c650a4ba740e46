"""The context of one call, gRPC or HTTP: its id, its metrics and its line in the log."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field

import structlog

from serving import logs, metrics
from serving.errors import Code, ServiceError, invalid

log = structlog.get_logger()

REQUEST_ID_HEADER = "x-request-id"
"""HTTP header, and key of gRPC's initial metadata, that holds the request's id."""

_MOST_CHARACTERS = 128


def check_request_id(given: str, *, path: str = "request_id") -> str:
    """Check a request's id, or make one.

    Args:
        given: The caller's id, or nothing.
        path: Path of the id in the request, for errors.

    Returns:
        The id: `given`, or a new one if that is empty.

    Raises:
        ServiceError: INVALID_ARGUMENT if it is too long or not printable ASCII.
    """
    return check_printable(given, path=path) or uuid.uuid4().hex


def check_printable(given: str, *, path: str) -> str:
    """Check a short name in a request.

    Args:
        given: The name; it may be empty.
        path: Path of its field, for errors.

    Returns:
        The same.

    Raises:
        ServiceError: INVALID_ARGUMENT if it is too long or not printable ASCII.
    """
    if len(given) > _MOST_CHARACTERS or not (given.isascii() and given.isprintable()):
        raise invalid(path, f"must be at most {_MOST_CHARACTERS} printable ASCII characters")
    return given


def bind_request_id(request_id: str) -> None:
    """Add the id to every further log line of this call; each call has its own context."""
    structlog.contextvars.bind_contextvars(request_id=request_id)


def accept_request_id(given: str, *, path: str = "request_id") -> str:
    """`check_request_id` and `bind_request_id` in one, where a request arrives."""
    request_id = check_request_id(given, path=path)
    bind_request_id(request_id)
    return request_id


@dataclass
class Call:
    """The result of a call, set by its handler.

    Attributes:
        code: gRPC's code by name, or the HTTP status.
        details: More fields for the log line.
    """

    code: str
    details: dict[str, str] = field(default_factory=dict)


# Their messages may repeat what the client sent.
_ABOUT_CONTENT = (Code.INVALID_ARGUMENT, Code.NOT_FOUND, Code.UNIMPLEMENTED)


def logged(error: ServiceError) -> dict[str, str]:
    """What the log says of an error: the message only if it cannot repeat content, or if `log_content` is set."""
    key = logs.CONTENT if error.code in _ABOUT_CONTENT else "error"
    return {"reason": error.reason, key: error.message}


@contextlib.contextmanager
def observe(method: str, code: str, *, quiet: bool = False) -> Iterator[Call]:
    """Measure one call; count and log it at its end.

    Args:
        method: Name in metrics and logs.
        code: Its code if the handler sets no other one.
        quiet: Whether it is neither counted nor logged.
    """
    call = Call(code)
    started = time.monotonic()
    metrics.RUNNING.labels(method).inc()
    try:
        yield call
    finally:
        seconds = time.monotonic() - started
        metrics.RUNNING.labels(method).dec()
        if not quiet:
            metrics.CALLS.labels(method, call.code).inc()
            metrics.SECONDS.labels(method).observe(seconds)
            log.info("call", method=method, code=call.code, seconds=round(seconds, 4), **call.details)
