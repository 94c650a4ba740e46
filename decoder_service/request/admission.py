"""What one request may take, and all of them together."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

from decoder_service.engine import Limit
from decoder_service.request.generation import Generation
from serving.errors import Reason, invalid, overloaded, too_large

_SHORTEST_RETRY = 1.0
_LONGEST_RETRY = 60.0
# How much the newest request counts in the running mean of their lengths.
_WEIGHT = 0.2


@dataclass(frozen=True)
class Limits:
    """What one request may take.

    Attributes:
        context_length: Most tokens of a prompt and its answer.
        default_max_tokens: Most tokens of an answer where the request names no bound.
        max_prompt_media: Images and videos in one conversation.
        max_text_bytes: Text of one conversation, in UTF-8 bytes.
        max_feature_bytes: Features, in bytes of float32.
        media_timeout: Seconds to wait for all features.
        context_limit: What an answer is told that fills `context_length`: whether memory made it so short.
    """

    context_length: int
    default_max_tokens: int = 16384
    max_prompt_media: int = 64
    max_text_bytes: int = 2 << 20
    max_feature_bytes: int = 512 << 20
    media_timeout: float = 300.0
    context_limit: Limit = Limit.CONTEXT


class Place:
    """What one request has been granted."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._bytes = 0

    def hold_bytes(self, count: int) -> None:
        """Change what its features take to `count` bytes.

        Raises:
            ServiceError: RESOURCE_EXHAUSTED where all requests together would take too much.
        """
        self._admission.add_bytes(count - self._bytes)
        self._bytes = count


class Admission:
    """Lets so many requests in, and so many bytes of features; the rest are refused with a time to come again.

    A request holds its place from its opening to its end, also while it waits for features.

    Args:
        places: How many requests may be inside.
        running: How many of them the engine works on at once.
        max_bytes: How many bytes of features they may hold together.
    """

    def __init__(self, places: int, *, running: int, max_bytes: int) -> None:
        self._places = places
        self._running = running
        self._max_bytes = max_bytes
        self._bytes = 0
        self._inside = 0
        self._mean_seconds = _SHORTEST_RETRY

    @property
    def inside(self) -> int:
        """How many requests are inside."""
        return self._inside

    @property
    def held_bytes(self) -> int:
        """How many bytes of features they hold."""
        return self._bytes

    def _retry_after(self) -> float:
        # About when the next of those inside will have gone.
        return min(max(self._mean_seconds / self._running, _SHORTEST_RETRY), _LONGEST_RETRY)

    @contextlib.contextmanager
    def enter(self) -> Iterator[Place]:
        """Take a place for as long as the block runs.

        Raises:
            ServiceError: RESOURCE_EXHAUSTED where there is none.
        """
        if self._inside >= self._places:
            raise overloaded(
                Reason.QUEUE_FULL,
                f"{self._inside} requests are running or waiting, which is the limit",
                retry_after=self._retry_after(),
            )
        self._inside += 1
        place = Place(self)
        entered = time.monotonic()
        try:
            yield place
        finally:
            place.hold_bytes(0)
            self._inside -= 1
            self._mean_seconds += _WEIGHT * (time.monotonic() - entered - self._mean_seconds)

    def add_bytes(self, count: int) -> None:
        """Take bytes, or give them back where `count` is negative.

        Raises:
            ServiceError: RESOURCE_EXHAUSTED where there are not so many.
        """
        if count > 0 and self._bytes + count > self._max_bytes:
            raise overloaded(
                Reason.FEATURE_MEMORY_FULL,
                f"features of running requests take {self._bytes} bytes and {count} more would pass "
                f"max_buffered_feature_bytes, which is {self._max_bytes}",
                retry_after=self._retry_after(),
            )
        self._bytes += count


def check_room(prompt_tokens: int, max_tokens: int | None, context_length: int) -> int:
    """Check that prompt and answer fit the context.

    Args:
        prompt_tokens: Tokens of the prompt, as far as they are known.
        max_tokens: Most tokens of the answer, where they must fit.
        context_length: Most tokens of both.

    Returns:
        The tokens that the context leaves free.

    Raises:
        ServiceError: RESOURCE_EXHAUSTED for `messages` where no token is free; INVALID_ARGUMENT for
            `generation.max_tokens` where more are asked for than are free.
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
            f"{context_length}; clamp_max_tokens has it cut to that",
            reason=Reason.MAX_TOKENS_TOO_LARGE,
        )
    return free


def answer_bound(generation: Generation, free: int, limits: Limits) -> tuple[int, Limit]:
    """Most tokens of an answer, and which limit it is that it meets there.

    Args:
        generation: What was asked for.
        free: Tokens that the prompt leaves free.
        limits: What a request may take.
    """
    bound, limit = generation.max_tokens, Limit.MAX_TOKENS
    if bound is None:
        bound, limit = limits.default_max_tokens, Limit.SERVER
    return (bound, limit) if bound <= free else (free, limits.context_limit)
