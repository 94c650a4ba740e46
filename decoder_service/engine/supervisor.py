"""Common to both engines: start, readiness, restart after a failure, and delivery of events."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable

import structlog

from decoder_service.engine.interface import EngineError, EngineEvent, EngineFinished
from serving.errors import Reason, ServiceError, failure, invalid, unavailable

log = structlog.get_logger()

FIRST_BACKOFF_SECONDS = 0.5
LAST_BACKOFF_SECONDS = 30.0


def not_ready(retry_after: float = 1.0) -> ServiceError:
    """The error of a request while no engine is ready."""
    return unavailable(Reason.ENGINE_NOT_READY, "the engine is being started again", retry_after=retry_after)


def failed() -> ServiceError:
    """The error of a request that failed by itself."""
    return failure(Reason.ENGINE_FAILED, "the engine failed on this request; the log has the details")


def not_finite() -> ServiceError:
    """The error of a request whose logits are not finite."""
    return failure(Reason.LOGITS_NOT_FINITE, "the model's logits for this request are not finite; the log has more")


def out_of_memory() -> ServiceError:
    """The error of a request for which an allocation failed."""
    return failure(
        Reason.OUT_OF_MEMORY, "there is no memory to compute this request; shorten it, or send smaller media"
    )


def constraint_failed(why: str) -> ServiceError:
    """The error of a request whose form turned out too complex while it was answered."""
    description = f"can go no further: {' '.join(why.split())}; simplify it"
    return invalid("generation.response_format", description, reason=Reason.FORM_INVALID)


async def events_of(queue: asyncio.Queue[EngineEvent | ServiceError]) -> AsyncGenerator[EngineEvent, None]:
    """Yield a request's events up to the last one. An error among them is raised."""
    while True:
        event = await queue.get()
        if isinstance(event, ServiceError):
            raise event
        yield event
        if isinstance(event, EngineFinished):
            return


class Supervisor:
    """Loads an engine, and reloads it after a failure with growing delays. Belongs to one event loop.

    Args:
        load: Loads the engine. Raises EngineError if it cannot be loaded.
        on_ready: Called each time the engine is ready.
        on_failure: Called each time a reload fails.
    """

    def __init__(
        self,
        load: Callable[[], Awaitable[None]],
        *,
        on_ready: Callable[[], None] = lambda: None,
        on_failure: Callable[[], None] = lambda: None,
    ) -> None:
        self._load = load
        self._on_ready = on_ready
        self._on_failure = on_failure
        self._set_ready: Callable[[bool], None] = lambda _: None
        self._reviving: asyncio.Task[None] | None = None
        self.ready = False
        """Whether a new request would be accepted."""
        self.stopping = False
        """Whether `stop` was called."""
        self.backoff = FIRST_BACKOFF_SECONDS
        """Seconds until the next try."""

    async def start(self, set_ready: Callable[[bool], None]) -> None:
        """Load the engine for the first time.

        Args:
            set_ready: Called with later changes of readiness.

        Raises:
            EngineError: It cannot be loaded.
        """
        self._set_ready = set_ready
        await self._start()

    async def _start(self) -> None:
        await self._load()
        self.ready = True
        self._on_ready()

    def proven(self) -> None:
        """Reset the delay: the engine works."""
        self.backoff = FIRST_BACKOFF_SECONDS

    def unready(self) -> None:
        """Mark the engine as failed: new requests are refused."""
        self.ready = False
        self._set_ready(False)

    def revive(self, clean_up: Callable[[], Awaitable[None]] | None = None) -> None:
        """Reload the engine in the background until it succeeds.

        Args:
            clean_up: Awaited before the first try.
        """
        self._reviving = asyncio.get_running_loop().create_task(self._revive(clean_up))

    async def _revive(self, clean_up: Callable[[], Awaitable[None]] | None) -> None:
        if clean_up is not None:
            await clean_up()
        while True:
            await asyncio.sleep(self.backoff)
            self.backoff = min(2 * self.backoff, LAST_BACKOFF_SECONDS)
            try:
                await self._start()
            except EngineError as error:
                log.error("engine cannot be started again", error=str(error), next_try_seconds=self.backoff)
                self._on_failure()
            else:
                self._set_ready(True)
                return

    async def stop(self) -> None:
        """Refuse new requests, and end reloads."""
        self.stopping = True
        self.ready = False
        if self._reviving is not None:
            self._reviving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reviving
