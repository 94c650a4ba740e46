"""The core of the gateway: coordinates the two tiers for one request. Independent of gRPC and HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Collection, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog

from gateway.affinity import generation_route, medium_route
from gateway.budget import Budget, TierBudget
from gateway.cache_scope import cache_scope
from gateway.copying import copy_fields, opening_of
from gateway.errors import Tier, broken, lost_midway, of_decoder, of_medium
from gateway.feed import EncodeMeter, Feed, Stopwatch
from gateway.media import Conversation, RequestLimits, RequestMedium, collect, name_options
from gateway.ports import CallEndedError, DecoderTier, GenerationCall, ReplicaCount, Route, VisionTier
from gateway.retry import Backoff, Deadline, Retries, RetryBudget, retriable, settings_differ
from serving.errors import Code, ServiceError
from serving.media import check_options
from serving.status import untyped
from serving.tasks import cancel_and_wait, gather_or_cancel
from vlm.v1 import chat_pb2, decoder_pb2, gateway_pb2, media_pb2, vision_pb2

log = structlog.get_logger()


@dataclass(frozen=True)
class Policy:
    """Attempts and concurrency of calls to the tiers.

    Attributes:
        encode_attempts: Most attempts to encode a medium while the vision tier is unavailable.
        decode_attempts: Most attempts of a request while decoders are unavailable and before the first token.
        encode_concurrency: Most media of one request that are encoded at the same time.
        backoff: The waits between attempts.
        retry_share: Retries at a tier for each request, as a fraction.
        retries_per_second: Retries at a tier for each second, besides.
    """

    encode_attempts: int = 3
    decode_attempts: int = 3
    encode_concurrency: int = 4
    backoff: Backoff = field(default_factory=Backoff)
    retry_share: float = 0.2
    retries_per_second: float = 10.0

    def retries(self, tier: Tier) -> Retries:
        """The retries at a tier."""
        attempts = self.encode_attempts if tier is Tier.VISION else self.decode_attempts
        budget = RetryBudget(self.retry_share, self.retries_per_second)
        return Retries(tier, attempts=attempts, backoff=self.backoff, budget=budget)


@dataclass(frozen=True)
class _Encoding:
    """The vision tier, with what calls to it share."""

    tier: VisionTier
    retries: Retries
    budget: TierBudget


class _DecoderLostError(Exception):
    """A decoder has failed or refused the request; another replica may answer."""

    def __init__(self, error: ServiceError) -> None:
        super().__init__(error.message)
        self.error = error


@dataclass
class _Progress:
    """Progress of one request."""

    request_id: str
    deadline: Deadline
    paths: list[str] = field(default_factory=list)  # of the media
    arrived: float = field(default_factory=time.monotonic)
    vision: Stopwatch = field(default_factory=Stopwatch)
    reporting: bool = False  # whether the client asks for progress events
    started: bool = False
    first_token: float | None = None
    tokens: int = 0

    def note(self, event: chat_pb2.ChatEvent) -> bool:
        """Record an event and fill in the gateway's own fields. False: the event is not for the client."""
        which = event.WhichOneof("event")
        if which == "started":
            if self.started:  # by an earlier attempt
                return False
            self.started = True
            event.started.request_id = self.request_id
        elif which == "progress":
            return self.reporting and self.started and self.first_token is None
        elif which == "delta":
            self.first_token = self.first_token or time.monotonic()
            self.tokens += len(event.delta.token_ids)
        elif which == "tool_call":
            pass
        elif which == "finished":
            timings = event.finished.timings
            timings.vision_seconds = self.vision.seconds
            timings.time_to_first_token_seconds = (self.first_token or time.monotonic()) - self.arrived
        else:
            raise broken(Tier.DECODER, "sent an event without content")
        return True


class Conductor:
    """Serves requests by calling both tiers.

    Args:
        vision: The vision tier; None: the model takes text only, and media are refused.
        decoder: The decoder tier.
        limits: Limits of one request.
        policy: Attempts and concurrency of calls to the tiers.
        encoder: The vision tier's settings, if they are known already; else they are read from the tier.
        takes: The kinds of media that the model takes, if there is a vision tier; others are refused.
    """

    def __init__(
        self,
        vision: VisionTier | None,
        decoder: DecoderTier,
        limits: RequestLimits,
        policy: Policy,
        encoder: vision_pb2.EncoderInfo | None = None,
        *,
        takes: Collection[str] = ("image", "video"),
    ) -> None:
        self._decoder = decoder
        self._takes = () if vision is None else takes
        self._limits = limits
        self._encode_concurrency = policy.encode_concurrency
        self._decoder_retries = policy.retries(Tier.DECODER)
        self._encoding: _Encoding | None = None
        if vision is not None:
            retries = policy.retries(Tier.VISION)
            self._encoding = _Encoding(vision, retries, TierBudget(vision, retries, known=encoder))

    @property
    def replicas(self) -> dict[Tier, ReplicaCount]:
        """How many replicas the tiers have."""
        vision = {} if self._encoding is None else {Tier.VISION: self._encoding.tier.replicas}
        return {**vision, Tier.DECODER: self._decoder.replicas}

    @property
    def _vision(self) -> _Encoding:
        if self._encoding is None:
            raise RuntimeError("without a vision tier no request has media")
        return self._encoding

    async def _collect(self, messages: Sequence[chat_pb2.Message]) -> Conversation:
        return await collect(messages, self._limits, takes=self._takes)

    async def chat(
        self, request: gateway_pb2.ChatRequest, *, request_id: str, deadline: Deadline, tenant: str = ""
    ) -> AsyncGenerator[chat_pb2.ChatEvent, None]:
        """Generate an answer: `started` once, progress if requested, deltas, `finished`.

        A decoder that fails before its first token is replaced by another, without an event for the client. Closing the
        generator cancels the calls to both tiers; use `contextlib.aclosing`.

        Args:
            request: The client's message. It is not changed.
            request_id: The request's id, checked.
            deadline: The request's deadline.
            tenant: Nothing that is kept of a tenant's requests is used for another's; empty without keys.

        Raises:
            ServiceError: The request failed; the fields at fault are named as in the client's request.
        """
        progress = _Progress(request_id, deadline, reporting=request.report_progress)
        check_options(request.media, "media")
        conversation = await self._collect(request.messages)
        opening = opening_of(request, request_id, cache_scope(tenant, request.cache_salt))
        opening.messages.extend(conversation.messages)
        media = list(conversation.media)
        progress.paths = [medium.path for medium in media]
        del request, conversation
        budget: Budget | None = None
        renewed = False
        attempts = self._decoder_retries.begin(generation_route(opening), deadline)
        while True:
            if media and budget is None:
                budget = await self._vision.budget.get(deadline)
            try:
                answering = self._attempt(opening, media, budget, progress, attempts.route)
                async with contextlib.aclosing(answering) as events:
                    async for event in events:
                        if not progress.note(event):
                            continue
                        if progress.first_token is not None:
                            media.clear()  # no other attempt follows, so the files can be freed
                        yield event
                return
            except ServiceError as error:
                # No tried replica has the known settings: the tier was restarted with others.
                if budget is None or renewed or not settings_differ(error):
                    raise
                log.warning("settings of the vision tier have changed", error=error.message)
                self._vision.budget.forget(budget)
                budget, renewed = None, True
            except _DecoderLostError as failure:
                if progress.first_token is not None:
                    raise lost_midway(failure.error, tokens=progress.tokens) from failure
                await attempts.failed(failure.error)

    async def _attempt(
        self,
        opening: decoder_pb2.GenerateOpen,
        media: Sequence[RequestMedium],
        budget: Budget | None,
        progress: _Progress,
        route: Route,
    ) -> AsyncGenerator[chat_pb2.ChatEvent, None]:
        """The events of one generation, which gets the features that it needs. `budget` is set if there are media."""
        options: list[media_pb2.MediaOptions] = []
        sent = decoder_pb2.GenerateOpen()
        sent.CopyFrom(opening)
        if budget is not None:
            options = [budget.options(medium.kind, opening.media, medium.options) for medium in media]
            name_options(sent.messages, options)
            sent.ClearField("media")  # each medium has its own options
            sent.encoder_dtype = budget.encoder_dtype
        meter = EncodeMeter()
        seconds = progress.deadline.remaining()
        async with self._decoder.generate(sent, seconds=seconds, route=route) as generation:
            needed = _needed(await self._receive(generation, progress), len(media))
            feeding = None
            if needed:
                feed = Feed(
                    self._vision.tier,
                    generation,
                    settings_digest="" if budget is None else budget.settings_digest,
                    request_id=progress.request_id,
                    cache_scope=opening.cache_scope,
                    deadline=progress.deadline,
                    retries=self._vision.retries,
                    concurrency=self._encode_concurrency,
                    stopwatch=progress.vision,
                    meter=meter,
                )
                feeding = asyncio.create_task(feed.run([(number, media[number], options[number]) for number in needed]))
            else:
                with contextlib.suppress(CallEndedError):  # `_receive` raises the cause
                    await generation.done_sending()
            try:
                going = max(opening.generation.n, 1)
                async with contextlib.aclosing(self._events(feeding, generation, meter, progress)) as events:
                    async for event in events:
                        if event.WhichOneof("event") == "finished":
                            going -= 1
                        yield event
                        if not going:
                            return
            finally:
                if feeding is not None:
                    await cancel_and_wait(feeding)

    async def _events(
        self, feeding: asyncio.Task[None] | None, generation: GenerationCall, meter: EncodeMeter, progress: _Progress
    ) -> AsyncGenerator[chat_pb2.ChatEvent, None]:
        """The decoder's events, without limit, and the progress of encoding until the feed has finished.

        `feeding` is None if there is nothing to feed; then no task is made.

        Raises:
            ServiceError: The feed or the decoder failed.
        """
        while feeding is None:
            yield _event(await self._receive(generation, progress))
        receiving = asyncio.create_task(self._receive(generation, progress))
        metering = asyncio.create_task(meter.changed())
        try:
            while True:
                await asyncio.wait((receiving, feeding, metering), return_when=asyncio.FIRST_COMPLETED)
                if feeding.done():
                    feeding.result()
                if metering.done():
                    yield chat_pb2.ChatEvent(progress=metering.result())
                    metering = asyncio.create_task(meter.changed())
                if receiving.done():
                    yield _event(receiving.result())
                    receiving = asyncio.create_task(self._receive(generation, progress))
                if feeding.done():
                    break
            yield _event(await receiving)
            while True:  # no task per token is needed any more
                yield _event(await self._receive(generation, progress))
        finally:
            await cancel_and_wait(receiving, metering)

    async def _receive(self, generation: GenerationCall, progress: _Progress) -> decoder_pb2.GenerateResponse | None:
        try:
            return await generation.receive()
        except ServiceError as error:
            if retriable(error) and (error.code is Code.UNAVAILABLE or progress.first_token is None):
                raise _DecoderLostError(error) from error
            if error.code is Code.DEADLINE_EXCEEDED and untyped(error):
                raise progress.deadline.error() from error
            raise of_decoder(error, progress.paths) from error

    async def count_tokens(
        self, request: gateway_pb2.CountTokensRequest, *, request_id: str, deadline: Deadline, tenant: str = ""
    ) -> gateway_pb2.CountTokensResponse:
        """Count the tokens of a conversation: the vision tier computes the layouts, the decoder counts.

        Raises:
            ServiceError: The fields at fault are named as in the client's request.
        """
        check_options(request.media, "media")
        conversation = await self._collect(request.messages)
        layouts = await self._layouts(conversation, request.media, request_id, deadline, cache_scope(tenant))
        question = decoder_pb2.CountPromptTokensRequest(messages=conversation.messages, layouts=layouts)
        copy_fields(request, question, without=("messages", "media", "request_id"))
        try:
            counted = await self._decoder_retries.run(
                lambda route: self._decoder.count(question, seconds=deadline.remaining(), route=route), deadline
            )
        except ServiceError as error:
            raise of_decoder(error, [medium.path for medium in conversation.media]) from error
        return gateway_pb2.CountTokensResponse(
            prompt_tokens=counted.prompt_tokens,
            media_tokens=counted.media_tokens,
            token_ids=counted.token_ids,
            media=layouts,
            token_texts=counted.token_texts,
            context_length=counted.context_length,
        )

    async def detokenize(
        self, request: chat_pb2.DetokenizeRequest, *, deadline: Deadline
    ) -> chat_pb2.DetokenizeResponse:
        """The text of tokens.

        Raises:
            ServiceError: The fields at fault are named as in the client's request.
        """
        try:
            return await self._decoder_retries.run(
                lambda route: self._decoder.detokenize(request, seconds=deadline.remaining(), route=route), deadline
            )
        except ServiceError as error:
            raise of_decoder(error, []) from error

    async def _layouts(
        self,
        conversation: Conversation,
        options: media_pb2.MediaOptions,
        request_id: str,
        deadline: Deadline,
        scope: str,
    ) -> list[media_pb2.MediaLayout]:
        """The layout of each medium, in order; requested once for equal files with equal options."""
        if not conversation.media:
            return []
        slots = asyncio.Semaphore(self._encode_concurrency)
        vision = self._vision
        budget = await vision.budget.get(deadline)

        async def describe(medium: RequestMedium, resolved: media_pb2.MediaOptions) -> media_pb2.MediaLayout:
            # Without the settings' digest: the options are in numbers, so any replica may answer.
            question = vision_pb2.EncodeRequest(
                kind=medium.kind, data=medium.data, options=resolved, request_id=request_id, cache_scope=scope
            )
            async with slots:
                try:
                    return await vision.retries.run(
                        lambda route: vision.tier.describe(question, seconds=deadline.remaining(), route=route),
                        deadline,
                        medium_route(medium.kind, medium.digest, resolved, cache_scope=scope),
                    )
                except ServiceError as error:
                    raise of_medium(error, medium.path, medium.options) from error

        keys = []
        distinct: dict[
            tuple[media_pb2.MediaKind.ValueType, str, bytes], Coroutine[Any, Any, media_pb2.MediaLayout]
        ] = {}
        for medium in conversation.media:
            resolved = budget.options(medium.kind, options, medium.options)
            key = (medium.kind, medium.digest, resolved.SerializeToString(deterministic=True))
            keys.append(key)
            if key not in distinct:
                distinct[key] = describe(medium, resolved)
        layouts = dict(zip(distinct, await gather_or_cancel(distinct.values()), strict=True))
        return [layouts[key] for key in keys]

    async def models(self, *, deadline: Deadline) -> list[chat_pb2.Model]:
        """The served models. Raises ServiceError."""
        model = await self._decoder_retries.run(
            lambda route: self._decoder.model(seconds=deadline.remaining(), route=route), deadline
        )
        return [model]


def _event(response: decoder_pb2.GenerateResponse | None) -> chat_pb2.ChatEvent:
    """The event that the decoder sent."""
    if response is None:
        raise broken(Tier.DECODER, "ended its answer without `finished`")
    if response.WhichOneof("payload") != "event":
        raise broken(Tier.DECODER, "sent something else than an event")
    return response.event


def _needed(response: decoder_pb2.GenerateResponse | None, media: int) -> list[int]:
    """The numbers of the media that the decoder needs."""
    if response is None or response.WhichOneof("payload") != "media_needed":
        raise broken(Tier.DECODER, "did not begin with `media_needed`")
    numbers = list(response.media_needed.media_indices)
    if len(set(numbers)) != len(numbers) or any(number >= media for number in numbers):
        raise broken(Tier.DECODER, f"asks for media {numbers} of {media}")
    return numbers
