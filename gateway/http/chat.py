"""`POST /v1/chat/completions`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from functools import partial

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from gateway.conductor import Conductor
from gateway.errors import renamed
from gateway.http.completions import Completion
from gateway.http.errors import status_of
from gateway.http.schema import CompletionRequest
from gateway.http.stream import EventStream, Pace
from gateway.http.translate import JsonNames, asked_tokens, parse, to_chat
from gateway.retry import Deadline
from serving.errors import Reason, ServiceError, too_large
from serving.tasks import run_until
from vlm.v1 import chat_pb2, gateway_pb2

_INLINE_BYTES = 64 * 1024
"""Bodies up to this length are translated on the event loop; it takes less than handing them to a thread."""


class ChatCompletions:
    """The endpoint, as an ASGI application: it must see a client leave, also while nothing is sent.

    Args:
        conductor: Does the work.
        seconds: Time for a request.
        max_body_bytes: Longest body.
        pace: How long a stream may be silent.
    """

    def __init__(self, conductor: Conductor, *, seconds: float, max_body_bytes: int, pace: Pace) -> None:
        self._conductor = conductor
        self._seconds = seconds
        self._max_body_bytes = max_body_bytes
        self._pace = pace

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        deadline = Deadline(self._seconds)
        try:
            body = await self._body(Request(scope, receive))
        except ClientDisconnect:
            return

        if len(body) <= _INLINE_BYTES:
            request, chat = _read(body, scope["request_id"])
        else:
            request, chat = await asyncio.to_thread(_read, body, scope["request_id"])
        events = self._conductor.chat(chat, request_id=chat.request_id, deadline=deadline)
        answer = _Answer(request, events, self._pace)
        del body, request, chat  # they hold the files, in base64 and without
        await run_until(answer.send(scope, receive, send), _gone(receive))

    async def _body(self, request: Request) -> bytes:
        limit = self._max_body_bytes
        body = bytearray()
        announced = request.headers.get("content-length", "")
        length = int(announced) if announced.isdecimal() else 0
        if length <= limit:
            async for piece in request.stream():
                body += piece
                if len(body) > limit:
                    break
        if max(length, len(body)) > limit:
            description = f"is longer than the limit of {limit} bytes (max_message_bytes)"
            raise too_large("body", description, reason=Reason.BODY_TOO_LARGE, limit=limit)
        return bytes(body)


def _read(body: bytes, request_id: str) -> tuple[CompletionRequest, gateway_pb2.ChatRequest]:
    request = parse(body)
    return request, to_chat(request, request_id)


class _Answer:
    """The answer to one request, as JSON or as a stream of events."""

    def __init__(
        self, request: CompletionRequest, events: AsyncGenerator[chat_pb2.ChatEvent, None], pace: Pace
    ) -> None:
        self._stream = bool(request.stream)
        self._include_usage = request.stream_options is not None and request.stream_options.include_usage
        self._logprobs = bool(request.logprobs)
        self._max_tokens = asked_tokens(request)
        self._names = JsonNames(request)
        self._events = events
        self._pace = pace

    async def send(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it. Raises ServiceError where it fails before any of it was sent."""
        completion = Completion(scope["request_id"], logprobs=self._logprobs, max_tokens=self._max_tokens)
        async with contextlib.aclosing(self._events) as events:
            if self._stream:
                stream = EventStream(send, self._pace, self._names)
                failure = await stream.run(events, partial(completion.chunks, include_usage=self._include_usage))
                if failure is not None:
                    scope["late_status"] = status_of(failure)
                return
            try:
                whole = await completion.whole(events)
            except ServiceError as error:
                raise renamed(error, self._names) from error
        await JSONResponse(whole)(scope, receive, send)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
