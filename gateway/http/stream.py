"""An answer as server-sent events, with a keep-alive while nothing is sent.

Proxies and clients give up a connection on which nothing comes, and minutes of encoding may precede an answer. So the
status does not wait for the first token, and comments are sent while there is nothing else to send. Clients ignore
comments, as the format of event streams asks of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass

from starlette.types import Send

from gateway.errors import renamed
from gateway.http.errors import event_of
from serving.errors import ServiceError, unexpected
from serving.tasks import cancel_and_wait
from vlm.v1 import chat_pb2

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx must not collect the events
]

_WAITING = "waiting"


@dataclass(frozen=True)
class Pace:
    """How long a stream may be silent.

    Attributes:
        status_seconds: When status and headers are sent at the latest, from the beginning of the work. A failure before
            that is answered with a status of its own.
        comment_seconds: After how long a silence a comment is sent.
    """

    status_seconds: float = 3.0
    comment_seconds: float = 5.0


class EventStream:
    """One answer on its way to the client.

    Args:
        send: ASGI's.
        pace: How long it may be silent.
        names: From the names of fields in errors to those of the client's JSON.
    """

    def __init__(self, send: Send, pace: Pace, names: Callable[[str], str]) -> None:
        self._send = send
        self._pace = pace
        self._names = names
        self._now = asyncio.get_running_loop().time
        self._due = self._now() + pace.status_seconds
        self._begun = False
        self._doing = _WAITING
        self._writing = asyncio.Lock()  # the answer and the comments come from two tasks

    async def run(
        self, events: AsyncIterator[chat_pb2.ChatEvent], lines: Callable[[chat_pb2.ChatEvent], Iterable[bytes]]
    ) -> ServiceError | None:
        """Send the whole answer.

        Args:
            events: What happens to the request.
            lines: What an event puts on the stream.

        Returns:
            The failure that ended the answer after the status had been sent: the client has it as the last event.

        Raises:
            ServiceError: It failed before, and nothing was sent.
        """
        failure: ServiceError | None = None
        try:
            await self._relay(events, lines)
        except ServiceError as error:
            failure = renamed(error, self._names)
            if not self._begun:
                raise failure from None
            await self._write(event_of(failure))
        except Exception:
            if self._begun:
                await self._write(event_of(unexpected()))
                await self._end()
            raise
        await self._end()
        return failure

    async def _relay(
        self, events: AsyncIterator[chat_pb2.ChatEvent], lines: Callable[[chat_pb2.ChatEvent], Iterable[bytes]]
    ) -> None:
        await self._comment_if_due()
        commenting = asyncio.create_task(self._comment())
        try:
            async for event in events:  # without a task for each: that took a quarter of the gateway's time
                if event.WhichOneof("event") == "progress":
                    self._doing = _doing(event.progress)
                    await self._comment_if_due()  # events may follow one another without a turn for the other task
                else:
                    self._doing = _WAITING
                    for line in lines(event):
                        await self._write(line)
        finally:
            await cancel_and_wait(commenting)

    async def _comment(self) -> None:
        """Send a comment whenever nothing has been sent for long enough."""
        while True:
            await asyncio.sleep(max(0.0, self._due - self._now()))
            await self._comment_if_due()

    async def _comment_if_due(self) -> None:
        if self._now() >= self._due:
            await self._write(f": {self._doing}\n\n".encode())

    async def _write(self, line: bytes) -> None:
        async with self._writing:
            if not self._begun:
                self._begun = True
                await self._send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
            await self._send({"type": "http.response.body", "body": line, "more_body": True})
        self._due = self._now() + self._pace.comment_seconds

    async def _end(self) -> None:
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})


def _doing(progress: chat_pb2.Progress) -> str:
    """The stage of the request, in a few words."""
    match progress.stage:
        case chat_pb2.STAGE_QUEUED:
            return "queued"
        case chat_pb2.STAGE_ENCODING:
            stage, unit = "encoding", "patches"
        case chat_pb2.STAGE_PREFILL:
            stage, unit = "prefill", "tokens"
        case _:
            return _WAITING
    return f"{stage} {progress.done} of {progress.total} {unit}" if progress.total else stage
