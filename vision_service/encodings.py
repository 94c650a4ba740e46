"""Who wants which features: each picture is encoded once, however many ask for it, before, together or after.

Nothing here knows gRPC.
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
from vision_service.media import Medium
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
class _Flight:
    """A medium that is being encoded, and how many want it."""

    layout: asyncio.Future[Layout]
    task: asyncio.Task[Encoded]
    meter: Meter
    until: float  # by the loop's clock: when the last that wants it gives up
    wanted: int = field(default=0)


class Encodings:
    """Gives features from the cache, from work that is under way, or has them made. For the event loop's thread.

    Args:
        scheduler: Makes them.
        cache: Keeps them.
        check: Told a medium that is about to be encoded and the seconds that are left for it; may raise to refuse it.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        cache: FeatureCache,
        check: Callable[[Medium, float], None] = lambda medium, left: None,
    ) -> None:
        self._scheduler = scheduler
        self._cache = cache
        self._check = check
        self._flights: dict[Key, _Flight] = {}

    @contextlib.asynccontextmanager
    async def want(self, key: Key, data: bytes, left: float = math.inf) -> AsyncIterator[Encoding]:
        """Want a medium's features until the end of the block. Work that nobody wants any more is stopped.

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
        flight = self._flights.get(key)
        source: Source = "shared" if flight is not None else "encoder"
        SOURCES.labels(source).inc()
        until = asyncio.get_running_loop().time() + left
        if flight is None:
            flight = self._flights[key] = self._start(key, data, until)
        flight.until = max(flight.until, until)
        flight.wanted += 1
        try:
            yield Encoding(source, flight.meter, flight.layout, flight.task)
        finally:
            flight.wanted -= 1
            if not flight.wanted and not flight.task.done():
                self._land(key, flight)  # whoever comes now must not join what is being stopped
                flight.task.cancel()
                await asyncio.wait((flight.task,))

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

    def _start(self, key: Key, data: bytes, until: float) -> _Flight:
        layout: asyncio.Future[Layout] = asyncio.get_running_loop().create_future()
        meter = Meter()
        task = asyncio.create_task(self._make(key, data, layout, meter), name="features")
        flight = _Flight(layout, task, meter, until)

        def landed(task: asyncio.Task[Encoded]) -> None:
            self._land(key, flight)
            if not task.cancelled():
                task.exception()  # whoever wanted it has seen it, or has gone

        flight.task.add_done_callback(landed)
        return flight

    def _land(self, key: Key, flight: _Flight) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]

    async def _make(self, key: Key, data: bytes, layout: asyncio.Future[Layout], meter: Meter) -> Encoded:
        medium = await self._scheduler.prepare(key.kind, data, key.options)
        # Before it enters the queue: a forward pass that has begun can be left only between its layers.
        self._check(medium, self._flights[key].until - asyncio.get_running_loop().time())
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
