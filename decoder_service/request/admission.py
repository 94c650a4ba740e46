"""Limits of one request, and admission under the limits of all requests together."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from decoder_service.chat import MediaKind
from decoder_service.engine import Limit
from decoder_service.request.generation import Generation
from decoder_service.request.waits import Waits
from serving.errors import Reason, ServiceError, failure, invalid, overloaded, too_large

_SHORTEST_RETRY, _LONGEST_RETRY = 1.0, 600.0
"""Bounds of retry delays, in seconds."""

_MARGIN = 1.5
"""Ratio of the estimated wait to the remaining time from which on a request is refused: the estimate is a mean."""

SILENT_SECONDS = 10.0
"""Seconds without a message about features after which a request may lose its place. While media are encoded, one comes
each second; a vision replica that is frozen is replaced within these seconds."""


@dataclass(frozen=True)
class Limits:
    """Limits of one request.

    Attributes:
        context_length: Most tokens of a prompt and its answer.
        default_max_tokens: Most tokens of an answer if the request does not set it.
        max_prompt_media: Images and videos in one conversation.
        max_text_bytes: Text of one conversation, in UTF-8 bytes.
        max_feature_bytes: Features, in bytes of float32.
        media_timeout: Seconds to wait for the next message about features.
        opening_timeout: Seconds to wait for the first message of a stream.
        context_limit: The limit that an answer meets at `context_length`: KV_CACHE if memory shortens the context.
        positions: Positions that the model has, which a long video may use faster than tokens; None: not checked.
        takes: The kinds of media that the model takes.
    """

    context_length: int
    default_max_tokens: int = 16384
    max_prompt_media: int = 64
    max_text_bytes: int = 2 << 20
    max_feature_bytes: int = 512 << 20
    media_timeout: float = 300.0
    opening_timeout: float = 10.0
    context_limit: Limit = Limit.CONTEXT
    positions: int | None = None
    takes: frozenset[MediaKind] = frozenset(MediaKind)


class Place:
    """The admission of one request: its places, its bytes of features, and the end of its waiting.

    Args:
        admission: Where it was admitted.
        answers: Number of places.
    """

    def __init__(self, admission: Admission, answers: int) -> None:
        self._admission = admission
        self._bytes = 0
        self._waits: set[asyncio.Timeout] = set()
        self._evicted: ServiceError | None = None
        self.answers = answers
        """Number of places."""
        self.started: float | None = None
        """When its prefill started, by the admission's clock; None before the first token."""
        self.silent_since: float | None = None
        """Since when it waits for a message about its features; None while it does not."""

    def hold_bytes(self, count: int) -> None:
        """Change the bytes held for its features to `count`.

        Raises:
            ServiceError: RESOURCE_EXHAUSTED if all requests together would exceed the limit.
        """
        self._admission.add_bytes(count - self._bytes)
        self._bytes = count

    def start(self, prefill_seconds: float) -> None:
        """Record the end of the prefill, of its first answer: from now on it is not evicted."""
        if self.started is None:
            self.started = self._admission.clock() - prefill_seconds

    def evict(self, error: ServiceError) -> None:
        """Let the request fail where it waits, or will wait next. Its places are free at once."""
        if self._evicted is not None:
            return
        self._evicted = error
        self._admission.leave(self)
        for wait in self._waits:
            if not wait.expired():
                wait.reschedule(asyncio.get_running_loop().time())

    @contextlib.asynccontextmanager
    async def hearing(self, seconds: float) -> AsyncIterator[None]:
        """Wait in the block for a message about features.

        Args:
            seconds: Most seconds to wait.

        Raises:
            TimeoutError: The time is over.
            ServiceError: The request is evicted.
        """
        self.silent_since = self._admission.clock()
        try:
            async with self.waiting(seconds):
                yield
        finally:
            self.silent_since = None

    @contextlib.asynccontextmanager
    async def waiting(self, seconds: float | None = None) -> AsyncIterator[None]:
        """Wait in the block for something that eviction interrupts. Arguments and errors as for `hearing`."""
        if self._evicted is not None:
            raise self._evicted
        wait = asyncio.timeout(seconds)
        try:
            async with wait:
                self._waits.add(wait)
                try:
                    yield
                finally:
                    self._waits.discard(wait)
        except TimeoutError:
            if self._evicted is None:
                raise
        if self._evicted is not None:  # also if what it waited for came in the same moment
            raise self._evicted


class Admission:
    """Admits a limited number of requests and bytes of features, and refuses others with a retry delay.

    A request holds its place from its opening to its end, including the time in which it waits for features. One that
    has heard nothing about them for `SILENT_SECONDS` loses its place to a request that finds none.

    Args:
        places: Most admitted requests.
        running: Most requests that the engine processes at once.
        max_bytes: Most bytes of features of all requests together.
        clock: Seconds from any start, for tests.
    """

    def __init__(
        self, places: int, *, running: int, max_bytes: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._places = places
        self._max_bytes = max_bytes
        self._bytes = 0
        self._held: set[Place] = set()
        self._inside = 0
        self._waits = Waits(running)
        self.clock = clock

    @property
    def inside(self) -> int:
        """Number of admitted requests."""
        return self._inside

    @property
    def held_bytes(self) -> int:
        """Bytes of features that they hold."""
        return self._bytes

    @contextlib.contextmanager
    def enter(self, answers: int = 1, *, left: float = math.inf) -> Iterator[Place]:
        """Hold a place for each answer while the block runs.

        Args:
            answers: Answers of the request.
            left: Seconds until the request's deadline.

        Raises:
            ServiceError: RESOURCE_EXHAUSTED if there are not enough free places, or if those who are inside would
                still be running at the deadline; INVALID_ARGUMENT if there are never enough places.
        """
        if answers > self._places:
            raise invalid("generation.n", f"is {answers}, more than the {self._places} answers that may run or wait")
        self._make_room(answers)
        if self._inside + answers > self._places:
            raise overloaded(
                Reason.QUEUE_FULL,
                f"{self._inside} requests are running or waiting, which is the limit",
                retry_after=self._until_room(),
            )
        wait = self._until_start()
        if wait > _MARGIN * left:
            raise overloaded(
                Reason.DECODER_BUSY,
                f"{self._inside} requests are running or waiting, which will take about {wait:.0f} seconds, and the "
                f"request has {left:.0f} left",
                retry_after=_delay(wait - left / 2),
            )
        place = Place(self, answers)
        self._held.add(place)
        self._inside += answers
        try:
            yield place
        finally:
            place.hold_bytes(0)
            self.leave(place)
            if place.started is not None:
                self._waits.learn(self.clock() - place.started)

    def leave(self, place: Place) -> None:
        """Free the places of a request."""
        if place in self._held:
            self._held.remove(place)
            self._inside -= place.answers

    def add_bytes(self, count: int) -> None:
        """Reserve bytes, or release them if `count` is negative.

        Raises:
            ServiceError: RESOURCE_EXHAUSTED if there are not enough.
        """
        if count > 0 and self._bytes + count > self._max_bytes:
            raise overloaded(
                Reason.FEATURE_MEMORY_FULL,
                f"features of running requests take {self._bytes} bytes and {count} more would pass "
                f"max_buffered_feature_bytes, which is {self._max_bytes}",
                retry_after=_delay(self._waits.until_end(self._elapsed)),
            )
        self._bytes += count

    @property
    def _elapsed(self) -> list[float]:
        """For each running answer, the seconds since its start."""
        now = self.clock()
        return [now - place.started for place in self._held if place.started is not None for _ in range(place.answers)]

    def _until_start(self) -> float:
        """Estimated seconds until one more request starts; 0 if no duration is known yet."""
        waiting = sum(place.answers for place in self._held if place.started is None)
        return self._waits.until_start(self._elapsed, waiting) or 0.0

    def _until_room(self) -> float:
        """Estimated seconds until a place is free: a request ends, or has been silent for too long."""
        ends = self._waits.until_end(self._elapsed)
        silence = (SILENT_SECONDS - seconds for seconds, _ in self._silent)
        return _delay(min(silence, default=ends) if ends is None else min([ends, *silence]))

    @property
    def _silent(self) -> list[tuple[float, Place]]:
        """Requests that wait for messages about their features, and for how many seconds, the longest first."""
        now = self.clock()
        silent = [(now - place.silent_since, place) for place in self._held if place.silent_since is not None]
        return sorted(silent, key=lambda pair: -pair[0])

    def _make_room(self, answers: int) -> None:
        """Evict requests that have been silent for too long, as far as their places are needed."""
        for seconds, place in self._silent:
            if self._inside + answers <= self._places or seconds < SILENT_SECONDS:
                return
            place.evict(
                failure(
                    Reason.MEDIA_TIMEOUT,
                    f"no message about its media came for {seconds:.0f} seconds, and its place was needed",
                )
            )


def _delay(seconds: float | None) -> float:
    return _SHORTEST_RETRY if seconds is None else min(max(seconds, _SHORTEST_RETRY), _LONGEST_RETRY)


def check_room(prompt_tokens: int, max_tokens: int | None, context_length: int) -> int:
    """Check that prompt and answer fit in the context.

    Args:
        prompt_tokens: Tokens of the prompt that are known so far.
        max_tokens: Tokens of the answer that must fit, if any.
        context_length: Most tokens of both.

    Returns:
        The free tokens of the context.

    Raises:
        ServiceError: RESOURCE_EXHAUSTED for `messages` if no token is free; INVALID_ARGUMENT for
            `generation.max_tokens` if it is more than the free tokens.
    """
    free = context_length - prompt_tokens
    if free < 1:
        raise too_large(
            "messages",
            f"take {prompt_tokens} tokens or more and leave no room for an answer in the context of "
            f"{context_length}; shorten them, or send smaller or fewer media",
            reason=Reason.PROMPT_TOO_LONG,
            limit=context_length,
        )
    if max_tokens is not None and max_tokens > free:
        raise invalid(
            "generation.max_tokens",
            f"is {max_tokens}; the prompt, of at least {prompt_tokens} tokens, leaves at most {free} of the context of "
            f"{context_length}; clamp_max_tokens reduces it to that",
            reason=Reason.MAX_TOKENS_TOO_LARGE,
        )
    return free


def check_positions(used: NDArray[np.int64], max_tokens: int | None, positions: int) -> int:
    """Check that the model has the positions of the prompt, and some for the answer.

    Args:
        used: Positions of each token of the prompt and of the one after them, [axes, n + 1].
        max_tokens: Tokens of the answer that must fit, if any.
        positions: Number of positions.

    Returns:
        The free positions.

    Raises:
        ServiceError: As `check_room`.
    """
    first, greatest = int(used[:, -1].max()), int(used.max())
    free = positions - first
    if greatest >= positions:
        raise too_large(
            "messages",
            f"reach position {greatest} of the model's {positions}; shorten them, or send shorter videos",
            reason=Reason.PROMPT_TOO_LONG,
            limit=positions,
        )
    if max_tokens is not None and max_tokens > free:
        raise invalid(
            "generation.max_tokens",
            f"is {max_tokens}; the answer begins at position {first} of the model's {positions}; clamp_max_tokens "
            f"reduces it to {free}",
            reason=Reason.MAX_TOKENS_TOO_LARGE,
        )
    return free


def answer_bound(generation: Generation, free: int, limits: Limits) -> tuple[int, Limit]:
    """Most tokens of an answer, and the limit that this number comes from.

    Args:
        generation: Options of the request.
        free: Tokens of the context that the prompt leaves free.
        limits: Limits of the server.
    """
    bound, limit = generation.max_tokens, Limit.MAX_TOKENS
    if bound is None:
        bound, limit = limits.default_max_tokens, Limit.SERVER
    return (bound, limit) if bound <= free else (free, limits.context_limit)
