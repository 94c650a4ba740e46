"""The clients: a conversation in, events out, blocking or on asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import AsyncGenerator, Awaitable, Generator, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack

from serving.calls import REQUEST_ID_HEADER
from serving.errors import Code
from serving.transport import open_blocking_channel, open_channel
from triptych.api_key import key_metadata
from triptych.errors import AnswerError, TriptychError, closed, timed_out, typed
from triptych.events import Accepted, Answer, Event, TokenCount, count_from_wire, from_wire, gather
from triptych.gateways import Gateway, Gateways
from triptych.options import ChatOptions, CountOptions, chat_request, count_request
from triptych.retries import Attempts
from triptych.tls import Tls, credentials_of
from vlm.v1 import gateway_pb2

if TYPE_CHECKING:
    import grpc

    from triptych.messages import Conversation

DEFAULT_ADDRESS = "127.0.0.1:50051"
DEFAULT_RETRIES = 4
"""They cover 7.5 seconds: more than the restart of a gateway takes."""

_GRACE_SECONDS = 1.0

T = TypeVar("T")


class _Deadline:
    """Ends the waiting for a call soon after its deadline, if gRPC does not.

    gRPC ends calls through the thread that brings their messages, and that can be blocked: see `serving.wakeups`.

    Args:
        seconds: Deadline of the call; None: none.
    """

    def __init__(self, seconds: float | None) -> None:
        self._end = None if seconds is None else asyncio.get_running_loop().time() + seconds + _GRACE_SECONDS

    async def bound(self, waited: Awaitable[T]) -> T:
        """Wait.

        Raises:
            TriptychError: DEADLINE_EXCEEDED.
        """
        try:
            async with asyncio.timeout_at(self._end):
                return await waited
        except TimeoutError:
            raise timed_out() from None


def _accepted(metadata: Iterable[tuple[str, str | bytes]]) -> Accepted | None:
    """The event of the response's initial metadata; None if the call failed before the gateway sent any."""
    request_id = dict(metadata).get(REQUEST_ID_HEADER)
    return Accepted(request_id) if isinstance(request_id, str) else None


def _one(options: ChatOptions) -> ChatOptions:
    """The options of a call that returns one answer.

    Raises:
        TypeError: They ask for several.
    """
    if (options.get("n") or 1) != 1:
        raise TypeError(f"n is {options['n']!r}: call `answers` for several answers, or `chat`")
    return options


def _parsed(answer: Answer, form: type[T]) -> T:
    """The instance that an answer's JSON describes.

    Raises:
        AnswerError: It is cut, or none.
    """
    from triptych import schemas  # noqa: PLC0415  # imports pydantic

    if answer.finish_reason == "length":
        tokens = answer.usage.completion_tokens
        limit = answer.finish_limit or "max_tokens"
        message = f"the answer was cut at {tokens} tokens, before its JSON was complete; the limit was {limit}"
        raise AnswerError(Code.RESOURCE_EXHAUSTED, "ANSWER_CUT", message, answer)
    if answer.tool_calls:
        message = f"the model called {answer.tool_calls[0].name} instead of answering"
        raise AnswerError(Code.INTERNAL, "ANSWER_INVALID", message, answer)
    try:
        return schemas.read_json(form, answer.text)
    except ValueError as error:
        raise AnswerError(Code.INTERNAL, "ANSWER_INVALID", f"the answer is not of the type: {error}", answer) from error


class Client:
    """A blocking client of a gateway; safe to share between threads.

    Args:
        address: `host:port` of the gateway; of several gateways all addresses, separated by commas or as a list. One is
            used until it fails.
        retries: How often a call that fails with UNAVAILABLE is tried again, after the server's delay or half a second,
            doubled each time; 0 switches it off. A gateway that does not answer is replaced by the next one without a
            delay, until each was tried. A chat is tried again only before its first event. `timeout` bounds all
            attempts together.
        api_key: The gateway's key for this client; None takes that of the environment (`TRIPTYCH_API_KEY`), if any.
        tls: Use TLS, with these files; None: plain text.

    Raises:
        TypeError: The address is none.
        ValueError: Likewise, a file of `tls` cannot be used, or `api_key` cannot be sent: it has other characters than
            printable ASCII.
    """

    def __init__(
        self,
        address: str | Iterable[str] = DEFAULT_ADDRESS,
        *,
        retries: int = DEFAULT_RETRIES,
        api_key: str | None = None,
        tls: Tls | None = None,
    ) -> None:
        self._metadata = key_metadata(api_key)
        connect = functools.partial(open_blocking_channel, credentials=credentials_of(tls))
        self._gateways: Gateways[grpc.Channel] = Gateways(address, connect)
        self._retries = retries
        self._closed = False

    def chat(self, messages: Conversation, **options: Unpack[ChatOptions]) -> Generator[Event, None, None]:
        """Generate an answer, event by event. Leaving the loop cancels the call.

        Args:
            messages: Messages, as of `user`, `system`, `assistant` and `tool`, strings (of the user), or dictionaries
                as in OpenAI's JSON. A message or a string alone is a conversation of one message. Or a `Prompt`.
            options: As in `ChatOptions`.

        Raises:
            TriptychError: The call fails. Raised while events are read; it has the code, the reason and the fields.
            TypeError: An option is unknown or its value has another type; likewise a message. Raised at once.
            ValueError: No message can hold a value, or a role is unknown.
        """
        return self._events(chat_request(messages, options), options.get("timeout"))

    def _events(self, request: gateway_pb2.ChatRequest, seconds: float | None) -> Generator[Event, None, None]:
        attempts = Attempts(self._retries, seconds, len(self._gateways))
        while True:
            gateway, begun = self._gateways.used, False
            try:
                with contextlib.closing(self._attempt(gateway, request, attempts.remaining())) as events:
                    for event in events:
                        begun = True
                        yield event
                return
            except TriptychError as error:
                delay = None if begun else attempts.delay(error)
                self._gateways.leave_after(error, gateway)
                if delay is None:
                    raise
            time.sleep(delay)

    def _attempt(
        self, gateway: Gateway[grpc.Channel], request: gateway_pb2.ChatRequest, seconds: float | None
    ) -> Generator[Event, None, None]:
        self._check_open()
        call = gateway.stub.Chat(request, timeout=seconds, metadata=self._metadata)
        try:
            with typed(gateway.address):
                # The gateway sends the metadata when it has received the request, before the first event.
                if request.report_progress and (accepted := _accepted(call.initial_metadata())):
                    yield accepted
                for wire in call:
                    event = from_wire(wire)
                    if event is not None:
                        yield event
        finally:
            call.cancel()

    def answer(self, messages: Conversation, **options: Unpack[ChatOptions]) -> Answer:
        """Generate an answer, as `chat`, and return it as a whole. For several, call `answers`."""
        return gather(self.chat(messages, **_one(options)))[0]

    def answers(self, messages: Conversation, **options: Unpack[ChatOptions]) -> tuple[Answer, ...]:
        """Generate `n` answers, as `chat`, and return them as a whole."""
        return gather(self.chat(messages, **options), options.get("n") or 1)

    def parse(self, messages: Conversation, form: type[T], **options: Unpack[ChatOptions]) -> T:
        """Generate an answer whose JSON describes an instance of a type, and return that.

        The schema constrains the answer, but is not part of the prompt: the question must say what is wanted.

        Args:
            messages: As for `chat`.
            form: A pydantic model, a dataclass, a TypedDict, `list[int]`, or any other type that pydantic reads.
            options: As for `chat`, without those of the answer's form.

        Raises:
            AnswerError: A limit cut the answer, the model called a tool instead, or a validator of the type refuses.
            TriptychError: As for `chat`.
        """
        return _parsed(self.answer(messages, response_format=form, **options), form)  # type: ignore[misc]  # twice: TypeError

    def count(self, messages: Conversation, **options: Unpack[CountOptions]) -> TokenCount:
        """Count the tokens of a conversation, and compute the layout of each image and video.

        Nothing is encoded or generated. Errors as for `chat`.
        """
        request = count_request(messages, options)
        return count_from_wire(self._call("CountTokens", request, options.get("timeout")))

    def count_tokens(self, messages: Conversation, **options: Unpack[CountOptions]) -> int:
        """Count the tokens of the conversation's prompt, including media. Errors as for `chat`."""
        return self.count(messages, **options).prompt_tokens

    def models(self) -> list[str]:
        """Names of the served models."""
        reply = self._call("ListModels", gateway_pb2.ListModelsRequest(), None)
        return [model.id for model in reply.models]

    def _call(self, method: str, request: Any, seconds: float | None) -> Any:
        """The response of a call that is not streamed."""
        attempts = Attempts(self._retries, seconds, len(self._gateways))
        while True:
            self._check_open()
            gateway = self._gateways.used
            try:
                with typed(gateway.address):
                    return getattr(gateway.stub, method)(request, timeout=attempts.remaining(), metadata=self._metadata)
            except TriptychError as error:
                delay = attempts.delay(error)
                self._gateways.leave_after(error, gateway)
                if delay is None:
                    raise
            time.sleep(delay)

    def _check_open(self) -> None:
        if self._closed:
            raise closed()

    def close(self) -> None:
        """Close the connections and cancel running calls."""
        self._closed = True
        for channel in self._gateways.channels:
            channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncClient:
    """An asyncio client of a gateway; belongs to the event loop in which it was made. Arguments as for `Client`."""

    def __init__(
        self,
        address: str | Iterable[str] = DEFAULT_ADDRESS,
        *,
        retries: int = DEFAULT_RETRIES,
        api_key: str | None = None,
        tls: Tls | None = None,
    ) -> None:
        self._metadata = key_metadata(api_key)
        connect = functools.partial(open_channel, credentials=credentials_of(tls))
        self._gateways: Gateways[grpc.aio.Channel] = Gateways(address, connect)
        self._retries = retries
        self._closed = False

    def chat(self, messages: Conversation, **options: Unpack[ChatOptions]) -> AsyncGenerator[Event, None]:
        """Generate an answer, event by event. Closing the iterator cancels the call. Otherwise as `Client.chat`."""
        return self._events(chat_request(messages, options), options.get("timeout"))

    async def _events(self, request: gateway_pb2.ChatRequest, seconds: float | None) -> AsyncGenerator[Event, None]:
        attempts = Attempts(self._retries, seconds, len(self._gateways))
        while True:
            gateway, begun = self._gateways.used, False
            try:
                async with contextlib.aclosing(self._attempt(gateway, request, attempts.remaining())) as events:
                    async for event in events:
                        begun = True
                        yield event
                return
            except TriptychError as error:
                delay = None if begun else attempts.delay(error)
                self._gateways.leave_after(error, gateway)
                if delay is None:
                    raise
            await asyncio.sleep(delay)

    async def _attempt(
        self, gateway: Gateway[grpc.aio.Channel], request: gateway_pb2.ChatRequest, seconds: float | None
    ) -> AsyncGenerator[Event, None]:
        self._check_open()
        deadline = _Deadline(seconds)
        call = gateway.stub.Chat(request, timeout=seconds, metadata=self._metadata)
        try:
            with typed(gateway.address):
                if request.report_progress and (accepted := _accepted(await deadline.bound(call.initial_metadata()))):
                    yield accepted
                messages = aiter(call)
                while (wire := await deadline.bound(anext(messages, None))) is not None:
                    event = from_wire(wire)
                    if event is not None:
                        yield event
        finally:
            call.cancel()  # always: an unfinished aio call is never collected

    async def answer(self, messages: Conversation, **options: Unpack[ChatOptions]) -> Answer:
        """Generate an answer, as `chat`, and return it as a whole. For several, call `answers`."""
        return gather([event async for event in self.chat(messages, **_one(options))])[0]

    async def answers(self, messages: Conversation, **options: Unpack[ChatOptions]) -> tuple[Answer, ...]:
        """Generate `n` answers, as `chat`, and return them as a whole."""
        return gather([event async for event in self.chat(messages, **options)], options.get("n") or 1)

    async def parse(self, messages: Conversation, form: type[T], **options: Unpack[ChatOptions]) -> T:
        """Generate an answer whose JSON describes an instance of a type, and return that. As `Client.parse`."""
        return _parsed(await self.answer(messages, response_format=form, **options), form)  # type: ignore[misc]  # as there

    async def count(self, messages: Conversation, **options: Unpack[CountOptions]) -> TokenCount:
        """Count the tokens of a conversation, and compute the layout of each image and video. As `Client.count`."""
        request = count_request(messages, options)
        return count_from_wire(await self._call("CountTokens", request, options.get("timeout")))

    async def count_tokens(self, messages: Conversation, **options: Unpack[CountOptions]) -> int:
        """Count the tokens of the conversation's prompt, including media. Errors as for `chat`."""
        return (await self.count(messages, **options)).prompt_tokens

    async def models(self) -> list[str]:
        """Names of the served models."""
        reply = await self._call("ListModels", gateway_pb2.ListModelsRequest(), None)
        return [model.id for model in reply.models]

    async def _call(self, method: str, request: Any, seconds: float | None) -> Any:
        """The response of a call that is not streamed."""
        attempts = Attempts(self._retries, seconds, len(self._gateways))
        while True:
            self._check_open()
            gateway = self._gateways.used
            try:
                with typed(gateway.address):
                    seconds = attempts.remaining()
                    call = getattr(gateway.stub, method)(request, timeout=seconds, metadata=self._metadata)
                    return await _Deadline(seconds).bound(call)
            except TriptychError as error:
                delay = attempts.delay(error)
                self._gateways.leave_after(error, gateway)
                if delay is None:
                    raise
            await asyncio.sleep(delay)

    def _check_open(self) -> None:
        if self._closed:
            raise closed()

    async def close(self) -> None:
        """Close the connections and cancel running calls."""
        self._closed = True
        for channel in self._gateways.channels:
            await channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
