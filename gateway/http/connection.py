"""One HTTP connection: uvicorn's protocol, with a time limit for each of its phases."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable

import h11
import structlog
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from gateway.http.errors import body_of, json_bytes
from serving.connections import ConnectionLimits
from serving.errors import Reason, failure

log = structlog.get_logger()


class Phase(enum.Enum):
    """What a connection does."""

    HEADERS = "headers"
    """A request has begun, or the connection is new."""
    BODY = "body"
    """A request's body is being received. Its time limit is that of `body.Bodies`."""
    WORK = "work"
    """A request is answered."""
    REST = "rest"
    """A request was answered before its body was complete: the rest is read and dropped, so that the client reads the
    answer."""
    IDLE = "idle"
    """It waits for another request."""


class Connection(H11Protocol):
    """A connection that a client cannot keep for nothing.

    uvicorn has a limit for idle connections alone. This adds limits for headers, for the rest of a body, and for a
    client that takes nothing of what is sent to it.

    Args:
        config: uvicorn's settings.
        server_state: uvicorn's open connections and tasks.
        limits: The time limits.
        entered: Called when the phase changes, and with None when the connection is closed.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        limits: ConnectionLimits,
        entered: Callable[[Connection, Phase | None], None],
    ) -> None:
        super().__init__(config=config, server_state=server_state, app_state={})
        self._limits = limits
        self._entered = entered
        self._phase: Phase | None = None
        self._phase_limit: asyncio.TimerHandle | None = None
        self._send_limit: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See `asyncio.Protocol`."""
        super().connection_made(transport)
        # Data that the system does not take at once counts as not sent. With 0, asyncio's TLS would never resume.
        transport.set_write_buffer_limits(high=1)
        self._enter()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        super().connection_lost(exc)
        for limit in (self._phase_limit, self._send_limit):
            if limit is not None:
                limit.cancel()
        self._phase_limit = self._send_limit = None
        self._entered(self, None)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        super().data_received(data)
        self._enter()

    def on_response_complete(self) -> None:
        """See `H11Protocol`."""
        super().on_response_complete()
        self._enter()

    def pause_writing(self) -> None:
        """See `asyncio.Protocol`."""
        super().pause_writing()
        self._expect_progress()

    def resume_writing(self) -> None:
        """See `asyncio.Protocol`."""
        super().resume_writing()
        if self._send_limit is not None:
            self._send_limit.cancel()
            self._send_limit = None
        self._enter()

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP, or has too large headers."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):  # a chunk is malformed, and the answer has begun
            self.transport.abort()
            return
        if self._answering():  # for the application the client has left
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        # h11 keeps what it has not parsed; a header that is over its limit is still there.
        if len(self.conn.trailing_data[0]) > self.conn._max_incomplete_event_size:
            status, error = 431, failure(Reason.HEADERS_TOO_LARGE, "the headers are over 16 KiB")
        else:
            status, error = 400, failure(Reason.MESSAGE_MALFORMED, "the request is not valid HTTP/1.1")
        self._refuse(status, json_bytes(body_of(error)))

    def abort(self) -> None:
        """Close it at once; a running request ends as if the client had left."""
        self.transport.abort()

    def _answering(self) -> bool:
        # None before the first request, contrary to uvicorn's types.
        return self.cycle is not None and not self.cycle.response_complete  # type: ignore[redundant-expr]

    def _refuse(self, status: int, body: bytes) -> None:
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        for event in (h11.Response(status_code=status, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _current(self) -> Phase:
        if self._answering():
            return Phase.BODY if self.cycle.more_body else Phase.WORK
        if self.flow.write_paused:  # the end of an answer is not sent yet
            return Phase.WORK
        if self.cycle is None or self.conn.trailing_data[0]:  # type: ignore[redundant-expr]
            return Phase.HEADERS
        return Phase.IDLE if self.conn.their_state in (h11.IDLE, h11.DONE) else Phase.REST

    def _enter(self) -> None:
        if self.transport.is_closing() or (phase := self._current()) is self._phase:
            return
        self._phase = phase
        if self._phase_limit is not None:
            self._phase_limit.cancel()
            self._phase_limit = None
        if phase in (Phase.HEADERS, Phase.REST, Phase.IDLE):
            limits = self._limits
            seconds = limits.idle_seconds if phase is Phase.IDLE else limits.handshake_seconds
            self._phase_limit = self.loop.call_later(seconds, self._late, phase)
        self._entered(self, phase)

    def _late(self, phase: Phase) -> None:
        self._phase_limit = None
        if self.transport.is_closing():
            return
        if phase is Phase.HEADERS and self.conn.trailing_data[0] and self.conn.our_state is h11.IDLE:
            text = f"the headers did not arrive within {self._limits.handshake_seconds:g} seconds"
            self._refuse(408, json_bytes(body_of(failure(Reason.RECEIVE_TIMEOUT, text))))
        else:
            self.transport.abort()

    def _expect_progress(self, before: int | None = None) -> None:
        waiting = self.transport.get_write_buffer_size()
        if before is not None and waiting >= before:
            log.info("connection reset", cause=f"nothing was taken for {self._limits.send_seconds:g} seconds")
            self.transport.abort()
            return
        self._send_limit = self.loop.call_later(self._limits.send_seconds, self._expect_progress, waiting)


class Connections:
    """The open connections of a port, and which of them can be closed for another.

    Args:
        most: Most at once.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._open: set[Connection] = set()
        # Those without a request, and those whose body is incomplete: the oldest of their phase first.
        self._without: dict[Connection, None] = {}
        self._incomplete: dict[Connection, None] = {}
        self._changed = asyncio.Event()

    def entered(self, connection: Connection, phase: Phase | None) -> None:
        """Record the phase of a connection; None: it is closed."""
        self._without.pop(connection, None)
        self._incomplete.pop(connection, None)
        if phase is None:
            self._open.discard(connection)
        else:
            self._open.add(connection)
            if phase is Phase.BODY:
                self._incomplete[connection] = None
            elif phase is not Phase.WORK:
                self._without[connection] = None
        self._changed.set()

    async def make_room(self) -> None:
        """Wait until one more may be opened, at the cost of the oldest that has no complete request."""
        while len(self._open) >= self._most:
            for kind in (self._without, self._incomplete):
                if kind:
                    oldest = next(iter(kind))
                    self.entered(oldest, None)
                    oldest.abort()
                    break
            else:
                self._changed.clear()
                await self._changed.wait()
