"""The clients: a conversation in, events out, blocking or on asyncio."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypedDict, Unpack

import grpc

from serving.calls import REQUEST_ID_HEADER
from serving.status import from_rpc_error
from serving.transport import client_options, open_blocking_channel, open_channel
from triptych.events import Accepted, Answer, Event, TokenCount, count_from_wire, from_wire, gather
from triptych.media import MediaOptions, options_to_wire
from triptych.messages import Message, to_wire
from vlm.v1 import chat_pb2, gateway_pb2, gateway_pb2_grpc

DEFAULT_ADDRESS = "127.0.0.1:50051"


class CallOptions(TypedDict, total=False):
    """Options of all calls about a conversation.

    Attributes:
        model: Name of the model.
        request_id: Id for the logs.
        timeout: Deadline of the call, in seconds.
        enable_thinking: Whether the model is to think before it answers, if its chat template supports the choice.
    """

    model: str
    request_id: str
    timeout: float
    enable_thinking: bool


class CountOptions(MediaOptions, CallOptions, total=False):
    """Options of a count: `MediaOptions` and `CallOptions`."""


class ChatOptions(MediaOptions, CallOptions, total=False):
    """Options of a chat: these, `MediaOptions` and `CallOptions`.

    Options that are not set take the server's default.

    Attributes:
        max_tokens: Most tokens to generate; if not set, as many as the context and the server allow.
        clamp_max_tokens: Reduce `max_tokens` to the free tokens of the context instead of refusing it.
        temperature: 0 takes the likeliest token each time; up to 2.
        top_p: Keeps the likeliest tokens that reach this probability together.
        top_k: Keeps the k likeliest tokens.
        min_p: Keeps tokens at least this fraction as likely as the likeliest.
        repetition_penalty: Over 1 makes tokens of the prompt and of the answer less likely.
        presence_penalty: Subtracted from the logits of tokens that the answer contains; -2 to 2.
        frequency_penalty: Subtracted from a token's logit once for each occurrence in the answer; -2 to 2.
        logit_bias: Added to these tokens' logits; token id to -100 to 100.
        logprobs: Return the log probability of each token and of this many likeliest ones; 0 to 20.
        seed: Makes sampling repeatable.
        stop: Strings that end the answer.
        return_prompt_token_ids: Return the prompt's token ids.
        report_progress: Send `Accepted` and `Progress` events.
        recommended_sampling: Sample as the checkpoint's generation_config recommends, instead of greedily. Options that
            are set take precedence.
        repetition_detection: End an answer that repeats itself: `max_pattern_size` and `min_pattern_size` in tokens,
            and `min_count`, how often the pattern must occur in a row.
    """

    max_tokens: int
    clamp_max_tokens: bool
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float]
    logprobs: int
    seed: int
    stop: Sequence[str]
    return_prompt_token_ids: bool
    report_progress: bool
    recommended_sampling: bool
    repetition_detection: Mapping[str, int]


_GENERATION = tuple(
    name for name in chat_pb2.GenerationOptions.DESCRIPTOR.fields_by_name if name in ChatOptions.__annotations__
)
"""Options that are fields of GenerationOptions with the same names."""


def _check_names(options: Mapping[str, object], known: type[TypedDict]) -> None:  # type: ignore[valid-type]
    """Raise TypeError for an unknown option, as Python does for any other keyword."""
    for name in options:
        if name not in known.__annotations__:
            raise TypeError(f"there is no option {name!r}; there are {', '.join(sorted(known.__annotations__))}")


def _generation(given: Mapping[str, Any]) -> chat_pb2.GenerationOptions:
    """The generation options as a message.

    Raises:
        TypeError: A value has another type than the option; the message names the option. ValueError likewise.
    """
    generation = chat_pb2.GenerationOptions()
    for name in _GENERATION:
        if name not in given:
            continue
        value = given[name]
        if name == "stop" and isinstance(value, str):
            raise TypeError(f"stop is {value!r}: it must be a list of strings")
        try:
            generation.MergeFrom(chat_pb2.GenerationOptions(**{name: value}))
        except (TypeError, ValueError) as error:  # a UnicodeEncodeError is a ValueError with other arguments
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"{name} is {value!r}: {error}") from None
    return generation


def _chat_request(messages: Iterable[Message], options: ChatOptions) -> gateway_pb2.ChatRequest:
    _check_names(options, ChatOptions)
    given = {name: value for name, value in options.items() if value is not None}
    return gateway_pb2.ChatRequest(
        model=options.get("model", ""),
        messages=to_wire(messages),
        generation=_generation(given),
        media=options_to_wire(given),
        request_id=options.get("request_id", ""),
        report_progress=options.get("report_progress", False),
        enable_thinking=options.get("enable_thinking"),
    )


def _count_request(messages: Iterable[Message], options: CountOptions) -> gateway_pb2.CountTokensRequest:
    _check_names(options, CountOptions)
    return gateway_pb2.CountTokensRequest(
        model=options.get("model", ""),
        messages=to_wire(messages),
        media=options_to_wire(options),
        request_id=options.get("request_id", ""),
        enable_thinking=options.get("enable_thinking"),
    )


def _accepted(metadata: Iterable[tuple[str, str | bytes]]) -> Accepted | None:
    """The event of the response's initial metadata; None if the call failed before the gateway sent any."""
    request_id = dict(metadata).get(REQUEST_ID_HEADER)
    return Accepted(request_id) if isinstance(request_id, str) else None


class Client:
    """A blocking client of a gateway; safe to share between threads.

    Args:
        address: `host:port` of the gateway.
    """

    def __init__(self, address: str = DEFAULT_ADDRESS) -> None:
        self._channel = open_blocking_channel(address, client_options(address))
        self._stub = gateway_pb2_grpc.GatewayStub(self._channel)

    def chat(self, messages: Iterable[Message], **options: Unpack[ChatOptions]) -> Iterator[Event]:
        """Generate an answer, event by event. Leaving the loop cancels the call.

        Raises:
            TriptychError: The server's error, with its code, reason and fields.
            ValueError: An option or a role is unknown.
        """
        call = self._stub.Chat(_chat_request(messages, options), timeout=options.get("timeout"))
        try:
            # The gateway sends the metadata when it has received the request, before the first event.
            if options.get("report_progress") and (accepted := _accepted(call.initial_metadata())):
                yield accepted
            for wire in call:
                event = from_wire(wire)
                if event is not None:
                    yield event
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        finally:
            call.cancel()

    def answer(self, messages: Iterable[Message], **options: Unpack[ChatOptions]) -> Answer:
        """Generate an answer, as `chat`, and return it as a whole."""
        return gather(self.chat(messages, **options))

    def count(self, messages: Iterable[Message], **options: Unpack[CountOptions]) -> TokenCount:
        """Count the tokens of a conversation, and compute the layout of each image and video.

        Nothing is encoded or generated.

        Raises:
            TriptychError: The server's error, with its code, reason and fields.
            ValueError: An option or a role is unknown.
        """
        request = _count_request(messages, options)
        try:
            reply = self._stub.CountTokens(request, timeout=options.get("timeout"))
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        return count_from_wire(reply)

    def count_tokens(self, messages: Iterable[Message], **options: Unpack[CountOptions]) -> int:
        """Count the tokens of the conversation's prompt, including media.

        Raises:
            TriptychError: The server's error, with its code, reason and fields.
        """
        return self.count(messages, **options).prompt_tokens

    def models(self) -> list[str]:
        """Names of the served models."""
        try:
            reply = self._stub.ListModels(gateway_pb2.ListModelsRequest())
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        return [model.id for model in reply.models]

    def close(self) -> None:
        """Close the connection and cancel running calls."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncClient:
    """An asyncio client of a gateway; belongs to the event loop in which it was made.

    Args:
        address: `host:port` of the gateway.
    """

    def __init__(self, address: str = DEFAULT_ADDRESS) -> None:
        self._channel = open_channel(address, client_options(address))
        self._stub = gateway_pb2_grpc.GatewayStub(self._channel)

    async def chat(self, messages: Iterable[Message], **options: Unpack[ChatOptions]) -> AsyncIterator[Event]:
        """Generate an answer, event by event. Closing the iterator cancels the call.

        Raises:
            TriptychError: The server's error, with its code, reason and fields.
            ValueError: An option or a role is unknown.
        """
        call = self._stub.Chat(_chat_request(messages, options), timeout=options.get("timeout"))
        try:
            if options.get("report_progress") and (accepted := _accepted(await call.initial_metadata())):
                yield accepted
            async for wire in call:
                event = from_wire(wire)
                if event is not None:
                    yield event
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        finally:
            call.cancel()  # always: an unfinished aio call is never collected

    async def answer(self, messages: Iterable[Message], **options: Unpack[ChatOptions]) -> Answer:
        """Generate an answer, as `chat`, and return it as a whole."""
        return gather([event async for event in self.chat(messages, **options)])

    async def count(self, messages: Iterable[Message], **options: Unpack[CountOptions]) -> TokenCount:
        """Count the tokens of a conversation, and compute the layout of each image and video.

        Nothing is encoded or generated.

        Raises:
            TriptychError: The server's error, with its code, reason and fields.
            ValueError: An option or a role is unknown.
        """
        request = _count_request(messages, options)
        try:
            reply = await self._stub.CountTokens(request, timeout=options.get("timeout"))
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        return count_from_wire(reply)

    async def count_tokens(self, messages: Iterable[Message], **options: Unpack[CountOptions]) -> int:
        """Count the tokens of the conversation's prompt, including media.

        Raises:
            TriptychError: The server's error, with its code, reason and fields.
        """
        return (await self.count(messages, **options)).prompt_tokens

    async def models(self) -> list[str]:
        """Names of the served models."""
        try:
            reply = await self._stub.ListModels(gateway_pb2.ListModelsRequest())
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        return [model.id for model in reply.models]

    async def close(self) -> None:
        """Close the connection and cancel running calls."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
