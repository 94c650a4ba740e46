"""The gRPC servicer of the decoder service."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc

from decoder_service.chat import RawPrompt, media_of
from decoder_service.request.decoder import Decoder
from decoder_service.request.layout import checked_layout
from decoder_service.request.session import Session, open_session
from decoder_service.rpc import from_tools, from_wire, to_wire
from serving.calls import bind_request_id
from serving.errors import Reason, failure, invalid
from serving.tasks import cancel_and_wait
from vlm.v1 import chat_pb2, decoder_pb2, decoder_pb2_grpc

_Context = grpc.aio.ServicerContext[Any, Any]


_MARGIN_SECONDS = 1.0
_MARGIN_SHARE = 0.1
"""How long before the deadline an answer ends, so that its last event arrives in time: the smaller of a number of
seconds and a share of the time that the request has."""


class DecoderServicer(decoder_pb2_grpc.DecoderServicer):
    """Serves calls with the loaded model.

    Args:
        decoder: The loaded model.
    """

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder

    async def Generate(
        self, request_iterator: AsyncIterator[decoder_pb2.GenerateRequest], context: _Context
    ) -> AsyncIterator[decoder_pb2.GenerateResponse]:
        """Generate an answer to one conversation.

        From `media_needed` to the last header only the caller sends messages. Then `started` is sent, and features are
        received while the prompt is prefilled as far as they have arrived. A deadline, or a client that disconnects,
        cancels this coroutine; leaving the blocks releases the place and the engine.
        """
        arrived, until = time.perf_counter(), _end_of_answer(context)
        requests = aiter(request_iterator)
        first = await self._first(requests)
        if first is None or first.WhichOneof("payload") != "open":
            raise invalid("open", "must be the first message of the stream")
        opening = from_wire.opening(
            first.open,
            model=self._decoder.model.id,
            vocab_size=self._decoder.model.vocab_size,
            defaults=self._decoder.defaults,
            limits=self._decoder.limits,
        )
        del first
        bind_request_id(opening.request_id)
        async with open_session(self._decoder, opening, arrived=arrived, left=_time_left(context)) as session:
            yield to_wire.media_needed(session.intake.needed)
            await self._take_in(requests, session, until=lambda: session.intake.laid_out)
            yield to_wire.event(await session.start())
            rest = self._take_in(requests, session, until=lambda: session.intake.complete)
            arriving = asyncio.create_task(rest, name="features")
            try:
                async with contextlib.aclosing(session.events(arriving, until=until)) as events:
                    async for event in events:
                        yield to_wire.event(event)
            finally:
                await cancel_and_wait(arriving)

    async def _first(self, requests: AsyncIterator[decoder_pb2.GenerateRequest]) -> decoder_pb2.GenerateRequest | None:
        """The caller's first message. The call holds no place yet, but it takes memory."""
        timeout = self._decoder.limits.opening_timeout
        try:
            async with asyncio.timeout(timeout):
                return await anext(requests, None)
        except TimeoutError as error:
            raise failure(
                Reason.OPENING_TIMEOUT,
                f"the stream was opened {timeout:g} seconds ago, and its first message is missing",
            ) from error

    async def _take_in(
        self, requests: AsyncIterator[decoder_pb2.GenerateRequest], session: Session, *, until: Callable[[], bool]
    ) -> None:
        intake = session.intake
        while not until():
            request = await self._next(requests, session)
            if request is None:
                raise invalid(
                    "header",
                    f"the stream ended before all features of the media {list(intake.missing)} had come",
                    reason=Reason.FEATURES_INCOMPLETE,
                )
            match request.WhichOneof("payload"):
                case "header":
                    await intake.header(request.header.media_index, request.header.header)
                case "chunk":
                    await intake.chunk(request.chunk.media_index, request.chunk.chunk)
                case "progress":
                    pass  # it only restarts the timeout
                case "open":
                    raise invalid("open", "comes once, as the first message of the stream")
                case _:
                    raise invalid("payload", "is not set; send header, chunk or progress")

    async def _next(
        self, requests: AsyncIterator[decoder_pb2.GenerateRequest], session: Session
    ) -> decoder_pb2.GenerateRequest | None:
        """The caller's next message, None after the last. Raises an error if none arrives within the timeout."""
        timeout = self._decoder.limits.media_timeout
        try:
            async with session.place.hearing(timeout):
                return await anext(requests, None)
        except TimeoutError as error:
            raise failure(
                Reason.MEDIA_TIMEOUT,
                f"nothing came about the media {list(session.intake.missing)} for media_timeout, which is "
                f"{timeout:g} seconds",
            ) from error

    async def CountPromptTokens(
        self, request: decoder_pb2.CountPromptTokensRequest, context: _Context
    ) -> decoder_pb2.CountPromptTokensResponse:
        """Count the tokens of a prompt."""
        from_wire.check_model(request.model, self._decoder.model.id)
        vocab_size = self._decoder.model.vocab_size
        messages = from_wire.prompt_of(request, self._decoder.limits, vocab_size=vocab_size)
        media = () if isinstance(messages, RawPrompt) else media_of(messages)
        if len(request.layouts) != len(media):
            raise invalid("layouts", f"has {len(request.layouts)} layouts for {len(media)} media")
        layouts = [
            checked_layout(sent, medium, token_count=self._decoder.prompts.token_count, path=f"layouts[{index}]")
            for index, (sent, medium) in enumerate(zip(request.layouts, media, strict=True))
        ]
        counted = await self._decoder.count(
            messages,
            layouts,
            ids=request.return_token_ids,
            texts=request.return_token_texts,
            tools=from_tools.tools(request.tools),
            enable_thinking=from_wire.enable_thinking(request),
        )
        return to_wire.count(counted, self._decoder.limits.context_length)

    async def Detokenize(self, request: chat_pb2.DetokenizeRequest, context: _Context) -> chat_pb2.DetokenizeResponse:
        """Return the text of tokens."""
        decoder = self._decoder
        from_wire.check_model(request.model, decoder.model.id)
        ids = from_wire.token_ids(request.token_ids, "token_ids", decoder.model.vocab_size)
        return chat_pb2.DetokenizeResponse(text=await asyncio.to_thread(decoder.prompts.detokenize, ids))

    async def GetModel(self, request: decoder_pb2.GetModelRequest, context: _Context) -> chat_pb2.Model:
        """Return the loaded model."""
        return to_wire.model(self._decoder)


def _end_of_answer(context: _Context) -> float:
    """When an unfinished answer ends because of the deadline, by the event loop's clock."""
    left = _time_left(context)
    return asyncio.get_running_loop().time() + left - min(_MARGIN_SECONDS, _MARGIN_SHARE * left)


def _time_left(context: _Context) -> float:
    """Seconds until the deadline."""
    left = context.time_remaining()
    # None without a deadline, which the stubs do not know.
    return math.inf if left is None else left  # type: ignore[redundant-expr, unused-ignore]
