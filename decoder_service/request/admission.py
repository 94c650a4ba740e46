"""Limits of one request, and admission under the limits of all requests together."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from decoder_service.engine import Limit
from decoder_service.request.generation import Generation
from serving.errors import Reason, invalid, overloaded, too_large

_SHORTEST_RETRY = 1.0
_LONGEST_RETRY = 60.0
# How much the newest request counts in the running mean of their lengths.
_WEIGHT = 0.2


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
        context_limit: The limit that an answer meets at `context_length`: KV_CACHE if memory shortens the context.
        positions: Positions that the model has, which a long video may use faster than tokens; None: not checked.
    """

    context_length: int
    default_max_tokens: int = 16384
    max_prompt_media: int = 64
    max_text_bytes: int = 2 << 20
    max_feature_bytes: int = 512 << 20
    media_timeout: float = 300.0
    context_limit: Limit = Limit.CONTEXT
    positions: int | None = None


class Place:
    """The admission of one request: its place, and its bytes of features."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._bytes = 0

    def hold_bytes(self, count: int) -> None:
        """Change the bytes held for its features to `count`.

        Raises:
            ServiceError: RESOURCE_EXHAUSTED if all requests together would exceed the limit.
        """
        self._admission.add_bytes(count - self._bytes)
        self._bytes = count


class Admission:
    """Admits a limited number of requests and bytes of features, and refuses others with a retry delay.

    A request holds its place from its opening to its end, including the time in which it waits for features.

    Args:
        places: Most admitted requests.
        running: Most requests that the engine processes at once.
        max_bytes: Most bytes of features of all requests together.
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
        """Number of admitted requests."""
        return self._inside

    @property
    def held_bytes(self) -> int:
        """Bytes of features that they hold."""
        return self._bytes

    def _retry_after(self) -> float:
        # The expected time until the next admitted request ends.
        return min(max(self._mean_seconds / self._running, _SHORTEST_RETRY), _LONGEST_RETRY)

    @contextlib.contextmanager
    def enter(self, answers: int = 1) -> Iterator[Place]:
        """Hold a place for each answer while the block runs.

        Args:
            answers: Answers of the request.

        Raises:
            ServiceError: RESOURCE_EXHAUSTED if there are not enough free places; INVALID_ARGUMENT if there never are.
        """
        if answers > self._places:
            raise invalid("generation.n", f"is {answers}, more than the {self._places} answers that may run or wait")
        if self._inside + answers > self._places:
            raise overloaded(
                Reason.QUEUE_FULL,
                f"{self._inside} requests are running or waiting, which is the limit",
                retry_after=self._retry_after(),
            )
        self._inside += answers
        place = Place(self)
        entered = time.monotonic()
        try:
            yield place
        finally:
            place.hold_bytes(0)
            self._inside -= answers
            self._mean_seconds += _WEIGHT * (time.monotonic() - entered - self._mean_seconds)

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
                retry_after=self._retry_after(),
            )
        self._bytes += count


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
