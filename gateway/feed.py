"""Relays features from the vision tier to a generation as they arrive."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable
from dataclasses import dataclass

from gateway.affinity import medium_route
from gateway.errors import Tier, broken, of_medium
from gateway.media import RequestMedium
from gateway.ports import CallEndedError, GenerationCall, Route, VisionTier
from gateway.retry import Deadline, Retries
from serving.errors import ServiceError
from serving.tasks import gather_or_cancel
from vlm.v1 import chat_pb2, decoder_pb2, media_pb2, vision_pb2

_WAITING_MESSAGES = 2
"""Length of the queue between the vision tier and the decoder, for all media of a request."""


@dataclass
class Stopwatch:
    """When features were first requested and last arrived, in seconds of `time.monotonic`. None: not yet."""

    began: float | None = None
    ended: float | None = None

    @property
    def seconds(self) -> float:
        """From the first request to the last byte; 0 if nothing was encoded."""
        return 0.0 if self.began is None or self.ended is None else self.ended - self.began


class EncodeMeter:
    """Progress of the encoding of a request's media, in patches; `changed` waits for the next change."""

    def __init__(self) -> None:
        self._media: dict[int, vision_pb2.EncodeProgress] = {}
        self._changed = asyncio.Event()

    def set(self, number: int, done: int, total: int) -> None:
        """Record one medium's progress."""
        self._media[number] = vision_pb2.EncodeProgress(patches_done=done, patches_total=total)
        self._changed.set()

    def finish(self, number: int) -> None:
        """Record that one medium is encoded."""
        if (medium := self._media.get(number)) is not None and medium.patches_done < medium.patches_total:
            self.set(number, medium.patches_total, medium.patches_total)

    async def changed(self) -> chat_pb2.Progress:
        """Wait for the next change; returns the progress of all media together."""
        await self._changed.wait()
        self._changed.clear()
        media = self._media.values()
        return chat_pb2.Progress(
            stage=chat_pb2.STAGE_ENCODING,
            done=sum(medium.patches_done for medium in media),
            total=sum(medium.patches_total for medium in media),
        )


class Feed:
    """Requests the encoding of media and relays their features to one generation.

    Messages of the vision tier wait in a short queue for the one writer of the generation. While the decoder does not
    read, the queue is full, no more messages are read, and gRPC's flow control stops the encoders' streams.

    Args:
        vision: The vision tier.
        generation: Receives the features. The feed is its only sender.
        settings_digest: Digest of the vision tier's settings, as last read from it.
        request_id: For logs and traces.
        cache_scope: As in `EncodeRequest`.
        deadline: The request's deadline.
        retries: The retries at the vision tier.
        concurrency: Most media that are encoded at the same time.
        stopwatch: Records when features are requested and arrive.
        meter: Records the progress of each medium.
    """

    def __init__(
        self,
        vision: VisionTier,
        generation: GenerationCall,
        *,
        settings_digest: str,
        request_id: str,
        cache_scope: str,
        deadline: Deadline,
        retries: Retries,
        concurrency: int,
        stopwatch: Stopwatch,
        meter: EncodeMeter,
    ) -> None:
        self._vision = vision
        self._generation = generation
        self._settings_digest = settings_digest
        self._request_id = request_id
        self._cache_scope = cache_scope
        self._deadline = deadline
        self._retries = retries
        self._slots = asyncio.Semaphore(concurrency)
        self._stopwatch = stopwatch
        self._meter = meter
        self._queue: asyncio.Queue[decoder_pb2.GenerateRequest | None] = asyncio.Queue(_WAITING_MESSAGES)

    async def run(self, media: Iterable[tuple[int, RequestMedium, media_pb2.MediaOptions]]) -> None:
        """Relay the features of these media, each with its number and its resolved options.

        Returns early when the generation is over.

        Raises:
            ServiceError: A medium cannot be encoded; the fields at fault are named as in the client's request.
        """
        with contextlib.suppress(CallEndedError):  # the generation's `receive` raises the cause
            await gather_or_cancel((self._write(), self._encode_all(media)))

    async def _write(self) -> None:
        while (message := await self._queue.get()) is not None:
            await self._generation.send(message)
        await self._generation.done_sending()

    async def _encode_all(self, media: Iterable[tuple[int, RequestMedium, media_pb2.MediaOptions]]) -> None:
        await gather_or_cancel(self._encode(*one) for one in media)
        await self._queue.put(None)

    async def _encode(self, number: int, medium: RequestMedium, options: media_pb2.MediaOptions) -> None:
        async with self._slots:
            if self._stopwatch.began is None:
                self._stopwatch.began = time.monotonic()
            try:
                await self._retries.run(
                    lambda route: self._relay(number, medium, options, route),
                    self._deadline,
                    medium_route(medium.kind, medium.digest, options, cache_scope=self._cache_scope),
                )
            except ServiceError as error:
                raise of_medium(error, medium.path, medium.options) from error

    async def _relay(self, number: int, medium: RequestMedium, options: media_pb2.MediaOptions, route: Route) -> None:
        """One attempt. Its header makes the decoder discard the chunks of an earlier attempt."""
        request = vision_pb2.EncodeRequest(
            kind=medium.kind,
            data=medium.data,
            options=options,
            request_id=self._request_id,
            settings_digest=self._settings_digest,
            cache_scope=self._cache_scope,
        )
        announced = False
        seconds = self._deadline.remaining()
        async with contextlib.aclosing(self._vision.encode(request, seconds=seconds, route=route)) as responses:
            del request
            async for response in responses:
                message = decoder_pb2.GenerateRequest()
                which = response.WhichOneof("payload")
                # `CopyFrom` copies a chunk once; a constructor would also serialize and parse it.
                if which == "header" and not announced:
                    announced = True
                    message.header.media_index = number
                    message.header.header.CopyFrom(response.header)
                    grid = response.header.layout.grid_thw
                    self._meter.set(number, 0, grid.t * grid.h * grid.w)
                elif which == "chunk" and announced:
                    self._stopwatch.ended = time.monotonic()
                    message.chunk.media_index = number
                    message.chunk.chunk.CopyFrom(response.chunk)
                    self._meter.finish(number)
                elif which == "progress":
                    message.progress.media_index = number
                    message.progress.progress.CopyFrom(response.progress)
                    if announced:
                        self._meter.set(number, response.progress.patches_done, response.progress.patches_total)
                else:
                    raise broken(Tier.VISION, f"sent {which or 'nothing'} where it must not")
                await self._queue.put(message)
        # The decoder checks that the chunks are complete once the feed has ended its side of the call.
        if not announced:
            raise broken(Tier.VISION, "sent no header")
