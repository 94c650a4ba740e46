"""How much each client may do: requests at once, and requests and tokens in a minute.

Each process counts by itself: of several gateways, each allows as much.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass

from serving.errors import Reason, overloaded
from vlm.v1 import chat_pb2

_MOST_CLIENTS = 10_000
"""Clients that are remembered while they have nothing running. Addresses are many; what is forgotten is full again."""


RATE_HEADERS = tuple(
    f"x-ratelimit-{part}-{what}" for what in ("requests", "tokens") for part in ("limit", "remaining", "reset")
)
"""OpenAI's headers about rates."""


@dataclass(frozen=True)
class Limits:
    """Limits of one client. None: no limit.

    Attributes:
        max_requests: Requests at once.
        requests_per_minute: Requests in a minute.
        tokens_per_minute: Tokens of prompts and answers in a minute.
    """

    max_requests: int | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None


class Bucket:
    """A token bucket: a minute's worth may be taken at once, and comes back within a minute.

    Args:
        per_minute: Units in a minute.
        now: The time in seconds.
    """

    def __init__(self, per_minute: int, now: float) -> None:
        self.per_minute = per_minute
        self._left = float(per_minute)
        self._at = now

    def left(self, now: float) -> float:
        """Units that are left; negative if more were taken than there were."""
        self._left = min(self.per_minute, self._left + (now - self._at) * self.per_minute / 60)
        self._at = now
        return self._left

    def wait(self, now: float) -> float:
        """Seconds until a whole unit is left; 0 if there is one."""
        return max(0.0, 1 - self.left(now)) * 60 / self.per_minute

    def refill(self, now: float) -> float:
        """Seconds until it is full."""
        return (self.per_minute - self.left(now)) * 60 / self.per_minute

    def take(self, units: int, now: float) -> None:
        """Take units, also more than are left: the length of an answer is known when it has ended."""
        self._left = self.left(now) - units


class Client:
    """What one client does and may do.

    Args:
        limits: Its limits.
        clock: The time in seconds.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.running = 0
        """Requests that run."""
        self._limits = Limits()
        self._requests: Bucket | None = None
        self._tokens: Bucket | None = None
        self.limit(limits)

    def limit(self, limits: Limits) -> None:
        """Set the limits. A rate that has changed begins anew."""
        if limits == self._limits:
            return
        self._requests = self._bucket(self._requests, limits.requests_per_minute)
        self._tokens = self._bucket(self._tokens, limits.tokens_per_minute)
        self._limits = limits

    def _bucket(self, old: Bucket | None, per_minute: int | None) -> Bucket | None:
        if per_minute is None or (old is not None and old.per_minute == per_minute):
            return old if per_minute is not None else None
        return Bucket(per_minute, self._clock())

    @contextlib.contextmanager
    def request(self) -> Iterator[None]:
        """Count one request while it runs.

        Raises:
            ServiceError: RESOURCE_EXHAUSTED with the delay after which it would be taken.
        """
        most, now = self._limits.max_requests, self._clock()
        if most is not None and self.running >= most:
            message = f"this client has {self.running} requests running, and may have {most}; wait for one of them"
            raise overloaded(Reason.TOO_MANY_OF_CLIENT, message, retry_after=1.0)
        # Both before either is taken.
        for bucket, what in ((self._requests, "requests"), (self._tokens, "tokens")):
            if bucket is not None and (seconds := bucket.wait(now)) > 0:
                message = f"the limit of {bucket.per_minute} {what} per minute is reached; wait {seconds:.3g} seconds"
                raise overloaded(Reason.RATE_LIMITED, message, retry_after=seconds)
        if self._requests is not None:
            self._requests.take(1, now)
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1

    def metered(self, events: AsyncGenerator[chat_pb2.ChatEvent, None]) -> AsyncGenerator[chat_pb2.ChatEvent, None]:
        """The same events; their tokens are counted as they come, if there is a limit."""
        return events if self._tokens is None else self._count(events)

    async def _count(
        self, events: AsyncGenerator[chat_pb2.ChatEvent, None]
    ) -> AsyncGenerator[chat_pb2.ChatEvent, None]:
        counted: dict[int, int] = {}
        async with contextlib.aclosing(events):
            async for event in events:
                match event.WhichOneof("event"):
                    case "started":
                        self._take(event.started.prompt_tokens)
                    case "delta":
                        counted[event.choice] = counted.get(event.choice, 0) + len(event.delta.token_ids)
                        self._take(len(event.delta.token_ids))
                    case "finished":  # the tokens of tool calls are in no delta
                        self._take(max(0, event.finished.usage.completion_tokens - counted.get(event.choice, 0)))
                yield event

    def _take(self, tokens: int) -> None:
        if self._tokens is not None:
            self._tokens.take(tokens, self._clock())

    def headers(self) -> dict[str, str]:
        """OpenAI's `x-ratelimit-*` headers; none without a rate."""
        now, headers = self._clock(), {}
        for bucket, what in ((self._requests, "requests"), (self._tokens, "tokens")):
            if bucket is not None:
                headers[f"x-ratelimit-limit-{what}"] = str(bucket.per_minute)
                headers[f"x-ratelimit-remaining-{what}"] = str(max(0, int(bucket.left(now))))
                headers[f"x-ratelimit-reset-{what}"] = f"{bucket.refill(now):.3f}s"
        return headers

    @property
    def fresh(self) -> bool:
        """Whether it can be forgotten: nothing runs, and all it may do in a minute is left."""
        buckets = [bucket for bucket in (self._requests, self._tokens) if bucket is not None]
        return not self.running and all(bucket.refill(self._clock()) <= 0 for bucket in buckets)


class Clients:
    """All clients, by the names of their keys or by their addresses.

    Args:
        clock: The time in seconds.
        most: Clients that are remembered while they have nothing running.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, most: int = _MOST_CLIENTS) -> None:
        self._clock = clock
        self._most = most
        self._clients: dict[str, Client] = {}  # the least recently used first

    def get(self, name: str, limits: Limits) -> Client:
        """A client, with these limits from now on."""
        client = self._clients.pop(name, None)
        if client is None:
            client = Client(limits, self._clock)
            self._make_room()
        client.limit(limits)
        self._clients[name] = client
        return client

    def __len__(self) -> int:
        return len(self._clients)

    def _make_room(self) -> None:
        if len(self._clients) < self._most:
            return
        idle = [name for name, client in self._clients.items() if not client.running]
        # At least a tenth, so that not every new client has to look for one that can go.
        for name in {*(name for name in idle if self._clients[name].fresh), *idle[: max(1, self._most // 10)]}:
            del self._clients[name]
