"""Sends the answers to one request, in one piece or as a stream of events."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from typing import Any, Protocol

from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from gateway.errors import renamed
from gateway.http.endpoint import Work
from gateway.http.errors import status_of
from gateway.http.stream import EventStream, Pace
from serving.errors import ServiceError
from vlm.v1 import chat_pb2


class Answers(Protocol):
    """The answers on their way to JSON."""

    async def whole(self, events: AsyncIterator[chat_pb2.ChatEvent]) -> dict[str, Any]:
        """The answers in one piece."""

    def chunks(self, event: chat_pb2.ChatEvent) -> Iterator[bytes]:
        """The chunks that an event makes."""


def sending(
    events: AsyncGenerator[chat_pb2.ChatEvent, None],
    make: Callable[[str], Answers],
    *,
    stream: bool,
    pace: Pace,
    names: Callable[[str], str],
) -> Work:
    """What sends the answers. It raises ServiceError if it fails before any of them is sent.

    Args:
        events: The events of the answers. They are closed in the end.
        make: Makes the answers' JSON for a request id.
        stream: Whether they are sent as a stream of events.
        pace: How long a stream may be silent.
        names: From the names of fields in errors to those of the client's JSON.
    """

    async def send_answers(scope: Scope, receive: Receive, send: Send) -> None:
        answers = make(scope["request_id"])
        async with contextlib.aclosing(events):
            if stream:
                failure = await EventStream(send, pace, names).run(events, answers.chunks)
                if failure is not None:
                    scope["late_status"] = status_of(failure)
                return
            try:
                whole = await answers.whole(events)
            except ServiceError as error:
                raise renamed(error, names) from error
        await JSONResponse(whole)(scope, receive, send)

    return send_answers
