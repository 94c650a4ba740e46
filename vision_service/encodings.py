"""Shares features between requests: a medium is encoded once, even if several requests ask for it at the same time.

Independent of gRPC.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from prometheus_client import Counter, Gauge

from vision_service.cache import Encoded, FeatureCache, Key, Layout
from vision_service.media import PreparedMedium
from vision_service.scheduler import Meter, Scheduler

T = TypeVar("T")

Source = Literal["cache", "shared", "encoder"]
"""Source of features: the cache, another request's running encoding, or a new one."""

SOURCES = Counter(
    "triptych_features_total", "Media whose features were requested, by the source of the features.", ["source"]
)
CACHE_BYTES = Gauge("triptych_feature_cache_bytes", "Bytes of cached features.")


@dataclass(frozen=True)
class Encoding:
    """Features that are cached or being computed.

    Attributes:
        source: Source of the features.
        meter: Progress of the encoding.
    """

    source: Source
    meter: Meter
    _layout: asyncio.Future[Layout]
    _encoded: asyncio.Future[Encoded]

    async def layout(self) -> Layout:
        """Wait for the medium's layout.

        Raises:
            ServiceError: Errors of `Preprocessor.prepare`.
        """
        # `asyncio.wait` does not cancel the futures if only this waiter is cancelled.
        await asyncio.wait((self._layout, self._encoded), return_when=asyncio.FIRST_COMPLETED)
        return self._layout.result() if self._layout.done() else self._encoded.result().layout

    async def encoded(self) -> Encoded:
        """Wait for the features.

        Raises:
            ServiceError: Errors of `Scheduler.enqueue`'s result.
        """
        await asyncio.wait((self._encoded,))
        return self._encoded.result()


@dataclass(eq=False)
class _InFlight:
    """A medium that is being encoded, with the number of requests that use it."""

    layout: asyncio.Future[Layout]
    task: asyncio.Task[Encoded]
    meter: Meter
    until: float  # the latest deadline of its requests, by the loop's clock
    users: int = field(default=0)


class Encodings:
    """Returns features from the cache, from a running encoding, or from a new one. For the event loop's thread.

    Args:
        scheduler: Encodes media.
        cache: Caches features.
        check: Called with a medium before it is encoded, and the seconds left for it; may raise to refuse it.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        cache: FeatureCache,
        check: Callable[[PreparedMedium, float], None] = lambda medium, left: None,
    ) -> None:
        self._scheduler = scheduler
        self._cache = cache
        self._check = check
        self._in_flight: dict[Key, _InFlight] = {}

    @contextlib.asynccontextmanager
    async def acquire(self, key: Key, data: bytes, left: float = math.inf) -> AsyncIterator[Encoding]:
        """Use a medium's features within the block. An encoding that no request uses any more is cancelled.

        Args:
            key: Their key.
            data: The file's bytes, from which `key` was made.
            left: Seconds until the request's deadline.
        """
        kept = self._cache.get(key)
        if kept is not None:
            SOURCES.labels("cache").inc()
            patches = kept.layout.grid.patches
            yield Encoding("cache", Meter(patches, patches), _done(kept.layout), _done(kept))
            return
        work = self._in_flight.get(key)
        source: Source = "shared" if work is not None else "encoder"
        SOURCES.labels(source).inc()
        until = asyncio.get_running_loop().time() + left
        if work is None:
            work = self._in_flight[key] = self._start(key, data, until)
        work.until = max(work.until, until)
        work.users += 1
        try:
            yield Encoding(source, work.meter, work.layout, work.task)
        finally:
            work.users -= 1
            if not work.users and not work.task.done():
                self._forget(key, work)  # a new request must not join work that is being cancelled
                work.task.cancel()
                await asyncio.wait((work.task,))

    async def layout(self, key: Key, data: bytes) -> Layout:
        """A medium's layout, without encoding it.

        Args:
            key: Key of the medium.
            data: The file's bytes.

        Raises:
            ServiceError: Errors of `Preprocessor.prepare`.
        """
        kept = self._cache.get(key)
        if kept is not None:
            return kept.layout
        medium = await self._scheduler.prepare(key.kind, data, key.options)
        return Layout.of(medium)

    def _start(self, key: Key, data: bytes, until: float) -> _InFlight:
        layout: asyncio.Future[Layout] = asyncio.get_running_loop().create_future()
        meter = Meter()
        task = asyncio.create_task(self._make(key, data, layout, meter), name="features")
        work = _InFlight(layout, task, meter, until)

        def done(task: asyncio.Task[Encoded]) -> None:
            self._forget(key, work)
            if not task.cancelled():
                task.exception()  # its requests have received it, or are cancelled

        work.task.add_done_callback(done)
        return work

    def _forget(self, key: Key, work: _InFlight) -> None:
        if self._in_flight.get(key) is work:
            del self._in_flight[key]

    async def _make(self, key: Key, data: bytes, layout: asyncio.Future[Layout], meter: Meter) -> Encoded:
        medium = await self._scheduler.prepare(key.kind, data, key.options)
        # Before it enters the queue: a running forward pass can be cancelled only between its layers.
        self._check(medium, self._in_flight[key].until - asyncio.get_running_loop().time())
        layout.set_result(Layout.of(medium))
        with self._scheduler.enqueue(medium, meter) as pending:
            encoded = Encoded(layout.result(), await pending)
        self._cache.put(key, encoded)
        CACHE_BYTES.set(self._cache.nbytes)
        return encoded


def _done(value: T) -> asyncio.Future[T]:
    future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    future.set_result(value)
    return future
