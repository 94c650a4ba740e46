"""The client library: a conversation in, events out, blocking or on asyncio."""

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
    """What may be said of any call about a conversation.

    Attributes:
        model: Name of the model.
        request_id: Id for the logs.
        timeout: Seconds after which the call is given up.
    """

    model: str
    request_id: str
    timeout: float


class CountOptions(MediaOptions, CallOptions, total=False):
    """What may be said of a count: `MediaOptions` and `CallOptions`."""


class ChatOptions(MediaOptions, CallOptions, total=False):
    """What may be said of a chat: what is here, `MediaOptions` and `CallOptions`.

    What is left out takes the server's default.

    Attributes:
        max_tokens: Most tokens to write; left out: as many as the context allows, bounded by the server.
        clamp_max_tokens: Have `max_tokens` cut to what the prompt leaves free; otherwise more is refused.
        temperature: 0 takes the likeliest token each time; up to 2.
        top_p: Only the likeliest tokens that reach this probability together.
        top_k: Only the k likeliest tokens.
        min_p: Only tokens at least this fraction as likely as the likeliest.
        repetition_penalty: Over 1 makes tokens of the prompt and of the answer less likely.
        presence_penalty: Taken from the logits of tokens that the answer holds; -2 to 2.
        frequency_penalty: Taken from a token's logit as often as the answer holds it; -2 to 2.
        logit_bias: Added to these tokens' logits; token id to -100 to 100.
        logprobs: Ask for the log probability of each token and of this many likeliest ones; 0 to 20.
        seed: Makes sampling repeatable.
        stop: Strings that end the answer.
        return_prompt_token_ids: Ask for the prompt's token ids.
        report_progress: Ask for `Accepted` and `Progress` events.
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


_GENERATION = tuple(
    name for name in chat_pb2.GenerationOptions.DESCRIPTOR.fields_by_name if name in ChatOptions.__annotations__
)
"""Options that are fields of GenerationOptions, by the same names."""


def _check_names(options: Mapping[str, object], known: type[TypedDict]) -> None:  # type: ignore[valid-type]
    """Raise TypeError for an option that there is not, as Python does for any other keyword."""
    for name in options:
        if name not in known.__annotations__:
            raise TypeError(f"there is no option {name!r}; there are {', '.join(sorted(known.__annotations__))}")


def _generation(given: Mapping[str, Any]) -> chat_pb2.GenerationOptions:
    """The options of generation as a message.

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
        except (TypeError, ValueError) as error:  # a UnicodeEncodeError is a ValueError, and is made otherwise
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
    )


def _count_request(messages: Iterable[Message], options: CountOptions) -> gateway_pb2.CountTokensRequest:
    _check_names(options, CountOptions)
    return gateway_pb2.CountTokensRequest(
        model=options.get("model", ""),
        messages=to_wire(messages),
        media=options_to_wire(options),
        request_id=options.get("request_id", ""),
    )


def _accepted(metadata: Iterable[tuple[str, str | bytes]]) -> Accepted | None:
    """What the response's initial metadata tell; None where the call failed before the gateway sent any."""
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
        """Answer a conversation, event by event. Leaving the loop cancels the answer.

        Raises:
            TriptychError: What the server says is wrong, with its code, reason and fields.
            ValueError: An option or a role that the wire does not know.
        """
        call = self._stub.Chat(_chat_request(messages, options), timeout=options.get("timeout"))
        try:
            # The gateway sends the metadata as soon as it has the request. Waiting for them needs no event.
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
        """As `chat`, whole."""
        return gather(self.chat(messages, **options))

    def count(self, messages: Iterable[Message], **options: Unpack[CountOptions]) -> TokenCount:
        """What the conversation would take: its tokens, and what each image and video would become.

        Nothing is encoded or answered.

        Raises:
            TriptychError: What the server says is wrong, with its code, reason and fields.
            ValueError: An option or a role that the wire does not know.
        """
        request = _count_request(messages, options)
        try:
            reply = self._stub.CountTokens(request, timeout=options.get("timeout"))
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        return count_from_wire(reply)

    def count_tokens(self, messages: Iterable[Message], **options: Unpack[CountOptions]) -> int:
        """How many tokens the conversation's prompt takes, media included.

        Raises:
            TriptychError: What the server says is wrong, with its code, reason and fields.
        """
        return self.count(messages, **options).prompt_tokens

    def models(self) -> list[str]:
        """Names of the models that can be asked."""
        try:
            reply = self._stub.ListModels(gateway_pb2.ListModelsRequest())
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        return [model.id for model in reply.models]

    def close(self) -> None:
        """Close the connection; running answers are cancelled."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncClient:
    """A client of a gateway for asyncio; belongs to the event loop that made it.

    Args:
        address: `host:port` of the gateway.
    """

    def __init__(self, address: str = DEFAULT_ADDRESS) -> None:
        self._channel = open_channel(address, client_options(address))
        self._stub = gateway_pb2_grpc.GatewayStub(self._channel)

    async def chat(self, messages: Iterable[Message], **options: Unpack[ChatOptions]) -> AsyncIterator[Event]:
        """Answer a conversation, event by event. Closing the iterator cancels the answer.

        Raises:
            TriptychError: What the server says is wrong, with its code, reason and fields.
            ValueError: An option or a role that the wire does not know.
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
            call.cancel()  # on every path: an abandoned aio call is never collected

    async def answer(self, messages: Iterable[Message], **options: Unpack[ChatOptions]) -> Answer:
        """As `chat`, whole."""
        return gather([event async for event in self.chat(messages, **options)])

    async def count(self, messages: Iterable[Message], **options: Unpack[CountOptions]) -> TokenCount:
        """What the conversation would take: its tokens, and what each image and video would become.

        Nothing is encoded or answered.

        Raises:
            TriptychError: What the server says is wrong, with its code, reason and fields.
            ValueError: An option or a role that the wire does not know.
        """
        request = _count_request(messages, options)
        try:
            reply = await self._stub.CountTokens(request, timeout=options.get("timeout"))
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        return count_from_wire(reply)

    async def count_tokens(self, messages: Iterable[Message], **options: Unpack[CountOptions]) -> int:
        """How many tokens the conversation's prompt takes, media included.

        Raises:
            TriptychError: What the server says is wrong, with its code, reason and fields.
        """
        return (await self.count(messages, **options)).prompt_tokens

    async def models(self) -> list[str]:
        """Names of the models that can be asked."""
        try:
            reply = await self._stub.ListModels(gateway_pb2.ListModelsRequest())
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        return [model.id for model in reply.models]

    async def close(self) -> None:
        """Close the connection; running answers are cancelled."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
