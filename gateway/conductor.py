"""The core of the gateway: one request, conducted over both tiers. It knows nothing of gRPC and HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field

import structlog

from gateway.errors import Tier, broken, lost, lost_midway, of_decoder, of_medium, untyped
from gateway.feed import Feed, Stopwatch
from gateway.media import Conversation, Limits, Medium, collect
from gateway.ports import CallEndedError, DecoderTier, Generation, VisionTier
from gateway.retry import Backoff, Deadline, persist
from serving.errors import Code, ServiceError, unimplemented
from serving.media import check_options
from serving.tasks import drop, together
from vlm.v1 import chat_pb2, decoder_pb2, gateway_pb2, media_pb2, vision_pb2

log = structlog.get_logger()


@dataclass(frozen=True)
class Policy:
    """How often and how widely the tiers are tried.

    Attributes:
        encode_attempts: How often one medium is tried while the vision tier is unavailable.
        decode_attempts: How often a request is tried while decoders are unavailable and no token has come.
        encode_concurrency: How many media of one request are encoded at the same time.
        backoff: The waits between attempts.
    """

    encode_attempts: int = 3
    decode_attempts: int = 3
    encode_concurrency: int = 4
    backoff: Backoff = field(default_factory=Backoff)


class _DecoderLostError(Exception):
    """The decoder tier is unavailable: another replica may do better."""

    def __init__(self, error: ServiceError) -> None:
        super().__init__(error.message)
        self.error = error


@dataclass
class _Progress:
    """How far a request is."""

    request_id: str
    deadline: Deadline
    paths: list[str] = field(default_factory=list)  # of the media
    arrived: float = field(default_factory=time.monotonic)
    vision: Stopwatch = field(default_factory=Stopwatch)
    started: bool = False
    first_token: float | None = None
    tokens: int = 0

    def note(self, event: chat_pb2.ChatEvent) -> bool:
        """Take note of an event and fill in what the gateway knows. False: the client has it already."""
        which = event.WhichOneof("event")
        if which == "started":
            if self.started:  # by an earlier attempt
                return False
            self.started = True
            event.started.request_id = self.request_id
        elif which in ("delta", "tool_call"):
            self.first_token = self.first_token or time.monotonic()
            self.tokens += len(event.delta.token_ids)
        elif which == "finished":
            timings = event.finished.timings
            timings.vision_seconds = self.vision.seconds
            timings.time_to_first_token_seconds = (self.first_token or time.monotonic()) - self.arrived
        else:
            raise broken(Tier.DECODER, "sent an event without content")
        return True


class Conductor:
    """Answers requests with the help of both tiers.

    Args:
        vision: The vision tier.
        decoder: The decoder tier.
        limits: What a request may hold.
        policy: How often and how widely the tiers are tried.
    """

    def __init__(self, vision: VisionTier, decoder: DecoderTier, limits: Limits, policy: Policy) -> None:
        self._vision = vision
        self._decoder = decoder
        self._limits = limits
        self._policy = policy

    async def chat(
        self, request: gateway_pb2.ChatRequest, *, request_id: str, deadline: Deadline
    ) -> AsyncGenerator[chat_pb2.ChatEvent, None]:
        """Answer a conversation: `started` once, deltas, `finished`.

        A decoder that is lost before its first token is replaced by another, unseen by the client. Closing the
        generator cancels whatever is going on in both tiers; use `contextlib.aclosing`.

        Args:
            request: As the client sent it. It is not changed.
            request_id: The request's id, checked.
            deadline: When to give up.

        Raises:
            ServiceError: The request failed; the fields at fault are named as in the client's request.
        """
        progress = _Progress(request_id, deadline)
        conversation = await collect(request.messages, self._limits)
        opening = decoder_pb2.GenerateOpen(
            request_id=request_id,
            model=request.model,
            messages=conversation.messages,
            generation=request.generation if request.HasField("generation") else None,
            media=request.media if request.HasField("media") else None,
            tools=request.tools,
            tool_choice=request.tool_choice if request.HasField("tool_choice") else None,
        )
        media = list(conversation.media)
        progress.paths = [medium.path for medium in media]
        del request, conversation
        for attempt in range(1, self._policy.decode_attempts + 1):
            try:
                async with contextlib.aclosing(self._attempt(opening, media, progress)) as events:
                    async for event in events:
                        if not progress.note(event):
                            continue
                        if progress.first_token is not None:
                            media.clear()  # there is no other attempt from here on: the files may go
                        yield event
                return
            except _DecoderLostError as failure:
                if progress.first_token is not None:
                    raise lost_midway(failure.error, tokens=progress.tokens) from failure
                log.warning(
                    "attempt failed",
                    tier=Tier.DECODER.value,
                    attempt=attempt,
                    of=self._policy.decode_attempts,
                    error=failure.error.message,
                )
                if attempt == self._policy.decode_attempts:
                    raise lost(Tier.DECODER, failure.error, attempts=attempt) from failure
            await deadline.pause(self._policy.backoff.seconds(attempt))

    async def _attempt(
        self, opening: decoder_pb2.GenerateOpen, media: Sequence[Medium], progress: _Progress
    ) -> AsyncGenerator[chat_pb2.ChatEvent, None]:
        """The events of one generation, fed with the features that it lacks."""
        async with self._decoder.generate(seconds=progress.deadline.remaining()) as generation:
            with contextlib.suppress(CallEndedError):  # the receiver is told why
                await generation.send(decoder_pb2.GenerateRequest(open=opening))
            needed = _needed(await self._receive(generation, progress), len(media))
            feed = Feed(
                self._vision,
                generation,
                options=opening.media,
                request_id=progress.request_id,
                deadline=progress.deadline,
                attempts=self._policy.encode_attempts,
                concurrency=self._policy.encode_concurrency,
                backoff=self._policy.backoff,
                stopwatch=progress.vision,
            )
            feeding = asyncio.create_task(feed.run([(number, media[number]) for number in needed]))
            try:
                while True:
                    response = await self._receive_while(feeding, generation, progress)
                    if response is None:
                        raise broken(Tier.DECODER, "ended its answer without `finished`")
                    if response.WhichOneof("payload") != "event":
                        raise broken(Tier.DECODER, "sent something else than an event")
                    yield response.event
                    if response.event.WhichOneof("event") == "finished":
                        return
            finally:
                await drop(feeding)

    async def _receive_while(
        self, feeding: asyncio.Task[None], generation: Generation, progress: _Progress
    ) -> decoder_pb2.GenerateResponse | None:
        """The decoder's next message, unless the feed fails first."""
        if feeding.done():
            feeding.result()
            return await self._receive(generation, progress)
        receiving = asyncio.create_task(self._receive(generation, progress))
        try:
            await asyncio.wait((receiving, feeding), return_when=asyncio.FIRST_COMPLETED)
            if feeding.done():
                feeding.result()
            return await receiving
        finally:
            await drop(receiving)

    async def _receive(self, generation: Generation, progress: _Progress) -> decoder_pb2.GenerateResponse | None:
        try:
            return await generation.receive()
        except ServiceError as error:
            if error.code is Code.UNAVAILABLE:
                raise _DecoderLostError(error) from error
            if error.code is Code.DEADLINE_EXCEEDED and untyped(error):
                raise progress.deadline.error() from error
            raise of_decoder(error, progress.paths) from error

    async def count_tokens(
        self, request: gateway_pb2.CountTokensRequest, *, request_id: str, deadline: Deadline
    ) -> gateway_pb2.CountTokensResponse:
        """Count what a conversation would take: the vision tier lays the media out, the decoder counts.

        Raises:
            ServiceError: The fields at fault are named as in the client's request.
        """
        if request.tools:
            raise unimplemented("tools", "leave it empty")
        check_options(request.media, "media")
        conversation = await collect(request.messages, self._limits)
        layouts = await self._layouts(conversation, request.media, request_id, deadline)
        question = decoder_pb2.CountPromptTokensRequest(
            messages=conversation.messages,
            layouts=layouts,
            return_token_ids=request.return_token_ids,
            model=request.model,
        )
        try:
            counted = await persist(
                lambda: self._decoder.count(question, seconds=deadline.remaining()),
                tier=Tier.DECODER,
                attempts=self._policy.decode_attempts,
                backoff=self._policy.backoff,
                deadline=deadline,
            )
        except ServiceError as error:
            raise of_decoder(error, [medium.path for medium in conversation.media]) from error
        return gateway_pb2.CountTokensResponse(
            prompt_tokens=counted.prompt_tokens, media_tokens=counted.media_tokens, token_ids=counted.token_ids
        )

    async def _layouts(
        self, conversation: Conversation, options: media_pb2.MediaOptions, request_id: str, deadline: Deadline
    ) -> list[media_pb2.MediaLayout]:
        """The layout of each medium, in order; of the same file sent twice it is asked once."""
        slots = asyncio.Semaphore(self._policy.encode_concurrency)

        async def describe(medium: Medium) -> media_pb2.MediaLayout:
            question = vision_pb2.EncodeRequest(
                kind=medium.kind, data=medium.data, options=options, request_id=request_id
            )
            async with slots:
                try:
                    return await persist(
                        lambda: self._vision.describe(question, seconds=deadline.remaining()),
                        tier=Tier.VISION,
                        attempts=self._policy.encode_attempts,
                        backoff=self._policy.backoff,
                        deadline=deadline,
                    )
                except ServiceError as error:
                    raise of_medium(error, medium.path) from error

        distinct: dict[tuple[media_pb2.MediaKind.ValueType, str], Medium] = {}
        for medium in conversation.media:
            distinct.setdefault((medium.kind, medium.digest), medium)
        layouts = dict(zip(distinct, await together(map(describe, distinct.values())), strict=True))
        return [layouts[medium.kind, medium.digest] for medium in conversation.media]

    async def models(self, *, deadline: Deadline) -> list[chat_pb2.Model]:
        """What can be asked. Raises ServiceError."""
        model = await persist(
            lambda: self._decoder.model(seconds=deadline.remaining()),
            tier=Tier.DECODER,
            attempts=self._policy.decode_attempts,
            backoff=self._policy.backoff,
            deadline=deadline,
        )
        return [model]


def _needed(response: decoder_pb2.GenerateResponse | None, media: int) -> list[int]:
    """The numbers of the media that the decoder lacks."""
    if response is None or response.WhichOneof("payload") != "media_needed":
        raise broken(Tier.DECODER, "did not begin with `media_needed`")
    numbers = list(response.media_needed.media_indices)
    if len(set(numbers)) != len(numbers) or any(number >= media for number in numbers):
        raise broken(Tier.DECODER, f"asks for media {numbers} of {media}")
    return numbers
