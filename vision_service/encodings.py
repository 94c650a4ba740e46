"""Shares features between requests: each medium is encoded once, however many requests ask for it at the same time.

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
"""Where features come from: kept from before, from a request that had asked for the same, or made for this one."""

SOURCES = Counter(
    "triptych_features_total", "Media whose features were asked for, by where they came from.", ["source"]
)
CACHE_BYTES = Gauge("triptych_feature_cache_bytes", "Memory that the cached features take.")


@dataclass(frozen=True)
class Encoding:
    """Features that are there, or are being made.

    Attributes:
        source: Where they come from.
        meter: How far their encoding is.
    """

    source: Source
    meter: Meter
    _layout: asyncio.Future[Layout]
    _encoded: asyncio.Future[Encoded]

    async def layout(self) -> Layout:
        """The medium's layout, as soon as it is known.

        Raises:
            ServiceError: As `Preprocessor.prepare`.
        """
        # Waiting so, and not for the futures themselves, leaves them alone where this waiter alone is cancelled.
        await asyncio.wait((self._layout, self._encoded), return_when=asyncio.FIRST_COMPLETED)
        return self._layout.result() if self._layout.done() else self._encoded.result().layout

    async def encoded(self) -> Encoded:
        """The features.

        Raises:
            ServiceError: As `Scheduler.enqueue`'s result.
        """
        await asyncio.wait((self._encoded,))
        return self._encoded.result()


@dataclass(eq=False)
class _InFlight:
    """A medium that is being encoded, and how many requests use it."""

    layout: asyncio.Future[Layout]
    task: asyncio.Task[Encoded]
    meter: Meter
    until: float  # by the loop's clock: the latest deadline of its requests
    users: int = field(default=0)


class Encodings:
    """Gives features from the cache, from an encoding in flight, or from a new one. For the event loop's thread.

    Args:
        scheduler: Makes them.
        cache: Keeps them.
        check: Called with a medium that is about to be encoded and the seconds left for it; may raise to refuse it.
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
        """Hold a medium's features until the end of the block. An encoding that no request holds any more is cancelled.

        Args:
            key: Names them.
            data: The file's bytes, from which `key` was made.
            left: Seconds after which they are of no use.
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
                self._forget(key, work)  # a request that comes now must not join work that is being cancelled
                work.task.cancel()
                await asyncio.wait((work.task,))

    async def layout(self, key: Key, data: bytes) -> Layout:
        """A medium's layout, without encoding it.

        Args:
            key: Names the medium.
            data: The file's bytes.

        Raises:
            ServiceError: As `Preprocessor.prepare`.
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
                task.exception()  # its requests have seen it, or are cancelled

        work.task.add_done_callback(done)
        return work

    def _forget(self, key: Key, work: _InFlight) -> None:
        if self._in_flight.get(key) is work:
            del self._in_flight[key]

    async def _make(self, key: Key, data: bytes, layout: asyncio.Future[Layout], meter: Meter) -> Encoded:
        medium = await self._scheduler.prepare(key.kind, data, key.options)
        # Before it enters the queue: a forward pass that has begun can be left only between its layers.
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
