"""Logs on stderr: one line per event, for people or for collectors.

Nothing of a request's content is logged unless `log_content` is set: no text, no media, no key. Messages of exceptions
and of refused requests may repeat content, so only their types and reasons are logged.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import traceback
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

import structlog

if TYPE_CHECKING:
    from serving.settings import ServerSettings


CONTENT = "message"
"""Key of a log line's value that may repeat content."""

_shows_content = False


def trace(error: BaseException | None = None) -> str:
    """The traceback of an exception and of its causes, with the messages only if `log_content` is set.

    Args:
        error: The exception; None: the one that is being handled.
    """
    error = error or sys.exception()
    if error is None:
        return ""
    if _shows_content:
        return "".join(traceback.format_exception(error)).rstrip()
    parts: list[str] = []
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        frames = "".join(traceback.format_tb(error.__traceback__))
        inner = [trace(one) for one in error.exceptions] if isinstance(error, BaseExceptionGroup) else []
        parts.append("\n".join([f"{frames}{type(error).__module__}.{type(error).__qualname__}", *inner]))
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "\ncaused by\n".join(parts)


class _Formatter(logging.Formatter):
    """For the standard library's logging, which other packages use."""

    def formatException(  # noqa: N802  # as in the base class
        self, ei: tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]
    ) -> str:
        """As `trace`."""
        return trace(ei[1])


def _print_trace(stream: TextIO, exc_info: Any) -> None:
    stream.write("\n" + trace(exc_info[1]))


def _without_content(_: Any, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    event.pop(CONTENT, None)
    return event


class _Lossy:
    """A stream that drops what cannot be written: a full disk or a log collector that has ended fails no request.

    Args:
        stream: Where lines are written.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write a text, or drop it."""
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Pass on what is buffered, or leave it there."""
        with contextlib.suppress(OSError):
            self._stream.flush()


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a record of gRPC's tells more than that a client left a call before its status was sent.

    gRPC keeps quiet about this if it hears of the cancellation before the status fails. The other order is as normal.
    """
    error = record.exc_info[1] if record.exc_info else None
    return type(error).__name__ != "ExecuteBatchError" or not str(error).startswith('Failed "execute_batch"')


def configure(settings: ServerSettings, service: str) -> None:
    """Set up structlog and the standard library's logging for this process.

    Args:
        settings: Level and format.
        service: Name in every line.
    """
    global _shows_content  # noqa: PLW0603  # like the rest of the logging of a process
    _shows_content = settings.log_content
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if not settings.log_content:
        shared.append(_without_content)
    if settings.log_format == "json":
        shared += [
            structlog.processors.ExceptionRenderer(lambda exc_info: trace(exc_info[1])),
            structlog.processors.JSONRenderer(),
        ]
    else:
        shared += [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=_print_trace)]
    structlog.configure(
        processors=shared,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(_Lossy(sys.stderr)),  # type: ignore[arg-type]  # what print needs
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(service=service)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("%(levelname)s %(name)s %(message)s"))
    logging.getLogger("grpc._cython.cygrpc").addFilter(_is_news)
    # Its advice about LongRoPE in a config is for those who write checkpoints.
    logging.getLogger("transformers.modeling_rope_utils").setLevel(logging.ERROR)
    logging.basicConfig(level=max(level, logging.WARNING), handlers=[handler])
