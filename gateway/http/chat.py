"""`POST /v1/chat/completions`."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from functools import partial

from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from gateway.conductor import Conductor
from gateway.errors import renamed
from gateway.http.completions import Completion
from gateway.http.endpoint import Endpoint, Work
from gateway.http.errors import status_of
from gateway.http.schema import CompletionRequest
from gateway.http.stream import EventStream, Pace
from gateway.http.translate import JsonNames, asked_tokens, parse, to_chat
from gateway.http.unserved import ignored_fields
from gateway.retry import Deadline
from serving.errors import ServiceError
from vlm.v1 import chat_pb2, gateway_pb2

_Read = tuple[CompletionRequest, gateway_pb2.ChatRequest]


class ChatCompletions(Endpoint[_Read]):
    """The endpoint.

    Args:
        conductor: Does the work.
        seconds: Time for a request.
        max_body_bytes: Longest body.
        pace: How long a stream may be silent.
    """

    def __init__(self, conductor: Conductor, *, seconds: float, max_body_bytes: int, pace: Pace) -> None:
        super().__init__(seconds=seconds, max_body_bytes=max_body_bytes)
        self._conductor = conductor
        self._pace = pace

    def read(self, body: bytes, request_id: str) -> tuple[_Read, list[str]]:
        """See `Endpoint`."""
        request = parse(body)
        ignored = ignored_fields(request)
        return (request, to_chat(request, request_id)), ignored

    def work(self, read: _Read, deadline: Deadline) -> Work:
        """See `Endpoint`."""
        request, chat = read
        events = self._conductor.chat(chat, request_id=chat.request_id, deadline=deadline)
        return _Answer(request, events, self._pace).send


class _Answer:
    """The answer to one request, as JSON or as a stream of events."""

    def __init__(
        self, request: CompletionRequest, events: AsyncGenerator[chat_pb2.ChatEvent, None], pace: Pace
    ) -> None:
        self._stream = bool(request.stream)
        self._include_usage = bool(request.stream_options and request.stream_options.include_usage)
        self._logprobs = bool(request.logprobs)
        self._reasoning = request.include_reasoning is not False
        self._max_tokens = asked_tokens(request)
        self._choices = request.n or 1
        self._names = JsonNames(request)
        self._events = events
        self._pace = pace

    async def send(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it. Raises ServiceError where it fails before any of it was sent."""
        completion = Completion(
            scope["request_id"],
            logprobs=self._logprobs,
            reasoning=self._reasoning,
            max_tokens=self._max_tokens,
            choices=self._choices,
        )
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
