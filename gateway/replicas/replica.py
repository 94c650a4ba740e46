"""One replica: its connection, its calls, and whether it may get more."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Generic, TypeVar

import grpc
import structlog

from gateway.ports import Route
from gateway.replicas.ejection import Ejection, EjectionPolicy
from serving.errors import Code, Reason, ServiceError, unavailable
from serving.status import from_rpc_error

log = structlog.get_logger()

S = TypeVar("S")
T = TypeVar("T")

_FULL_SECONDS = 1.0
"""How long a replica that refused a call for want of room comes after the others, if it states a longer delay."""


class Attempt(Generic[S]):
    """One call to one replica. Made by `ReplicaSet.attempt`.

    Args:
        replica: Where it goes.
        route: What it is.
        first_seconds: Longest wait for the first message.
    """

    def __init__(self, replica: Replica[S], route: Route, first_seconds: float) -> None:
        self._replica = replica
        self._first_seconds: float | None = first_seconds
        self._call: grpc.aio.Call | None = None
        self._ended: ServiceError | None = None  # why this side has ended the call
        self._reported = False
        self.movable = False
        """Whether another replica could do the work with little loss: nothing of its result has been passed on."""
        self.key = route.key
        self.load = route.load
        """Outstanding work; may be changed while the call runs."""

    @property
    def stub(self) -> S:
        """The stub on the replica's channel."""
        return self._replica.stub

    def follow(self, call: grpc.aio.Call) -> None:
        """Cancel this call if `end` is called, or was."""
        self._call = call
        if self._ended is not None:
            call.cancel()

    def end(self, error: ServiceError) -> None:
        """End the call, as if it had failed with this error."""
        self._ended = error
        if self._call is not None:
            self._call.cancel()

    def succeeded(self) -> None:
        """Record that the replica did its work."""
        self._report(self._replica.ejection.succeeded)

    async def receive(self, message: Awaitable[T]) -> T:
        """Wait for a message of the call.

        Raises:
            ServiceError: The call failed; UNAVAILABLE also if the replica is lost, or sends no first message in time.
        """
        with self.failures():
            try:
                async with asyncio.timeout(self._first_seconds):
                    received = await message
            except TimeoutError:
                self._ended = _lost(f"a replica has sent nothing for {self._first_seconds:g} seconds")
                raise self._ended from None
        self._first_seconds = None
        self._replica.heard()
        return received

    @contextlib.contextmanager
    def failures(self) -> Iterator[None]:
        """Convert the errors of gRPC in the block to ServiceError, and report them to the replica."""
        try:
            yield
        except grpc.RpcError as error:
            raise self._failed(_failure(error)) from error
        except ServiceError as error:
            raise self._failed(error) from None
        except asyncio.CancelledError:
            # `end` cancelled the call; else this task is being cancelled.
            task = asyncio.current_task()
            if self._ended is not None and not (task and task.cancelling()):
                raise self._failed(self._ended) from None
            raise

    def _failed(self, error: ServiceError) -> ServiceError:
        if error.code is Code.RESOURCE_EXHAUSTED and error.retry_after is not None:
            self._replica.refused(error.retry_after)
        elif error.reason == Reason.SHUTTING_DOWN.name:
            pass
        elif error.code in (Code.UNAVAILABLE, Code.INTERNAL):
            self._report(self._replica.failed)
        elif error.code is not Code.DEADLINE_EXCEEDED:  # an error of the request
            self.succeeded()
        return error

    def _report(self, outcome: Callable[[], object]) -> None:
        """Count one outcome of the call, the first."""
        if not self._reported:
            self._reported = True
            outcome()


def _lost(message: str) -> ServiceError:
    return unavailable(Reason.REPLICA_LOST, message)


def _failure(error: grpc.RpcError) -> ServiceError:
    """The error of a failed call to a tier."""
    # A call that this side cancels does not end with this error: the server has cancelled it, for example at shutdown.
    if isinstance(error, grpc.aio.AioRpcError) and error.code() is grpc.StatusCode.CANCELLED:
        return unavailable(Reason.CANCELLED, "it gave the call up")
    failure = from_rpc_error(error)
    if failure.reason == Reason.CLIENT_NOT_ALLOWED.name:  # another replica may have other settings
        return unavailable(Reason.CLIENT_NOT_ALLOWED, "it does not accept the gateway's certificate (tls_client_names)")
    return failure


class Replica(Generic[S]):
    """One replica of a tier.

    Args:
        tier: The tier's name, for logs.
        address: Its address, which is its name.
        channel: A channel to it.
        stub: Makes the stub on a channel.
        ejection: When it is ejected.
    """

    def __init__(
        self,
        tier: str,
        address: str,
        channel: grpc.aio.Channel,
        stub: Callable[[grpc.aio.Channel], S],
        ejection: EjectionPolicy,
    ) -> None:
        self._tier = tier
        self.address = address
        self.channel = channel
        self.stub = stub(channel)
        self.ejection = Ejection(ejection)
        self.serving = False
        """Whether its health is SERVING, as last watched."""
        self.responsive = True
        """Whether it answered the last probes."""
        self.suspect = False
        """Whether the current probe is late."""
        self.leaving = False
        """Whether it is no longer among the tier's addresses: it gets calls only while there is no other."""
        self.last_heard = -1.0
        """When its last message arrived, by `time.monotonic`."""
        self._full_until = 0.0
        self._attempts: set[Attempt[S]] = set()

    @property
    def healthy(self) -> bool:
        """Whether it can get calls."""
        return self.serving and self.responsive

    @property
    def preferred(self) -> bool:
        """Whether nothing speaks against a call."""
        return not (
            self.suspect
            or self.ejection.ejected
            or (self.ejection.probation and self._attempts)
            or time.monotonic() < self._full_until
        )

    @property
    def idle(self) -> bool:
        """Whether it has no calls."""
        return not self._attempts

    @property
    def load(self) -> float:
        """Outstanding work of its calls."""
        return sum(attempt.load for attempt in self._attempts)

    def runs(self, key: bytes) -> bool:
        """Whether one of its calls has this key."""
        return any(attempt.key == key for attempt in self._attempts)

    @contextlib.contextmanager
    def attempt(self, route: Route, first_seconds: float) -> Iterator[Attempt[S]]:
        """A call to this replica, counted while the block runs. Arguments as for `Attempt`."""
        attempt = Attempt(self, route, first_seconds)
        self._attempts.add(attempt)
        try:
            yield attempt
        finally:
            self._attempts.discard(attempt)

    def heard(self) -> None:
        """Record that a message arrived from it."""
        self.last_heard = time.monotonic()

    def refused(self, retry_after: float) -> None:
        """Record that it has no room."""
        self._full_until = time.monotonic() + min(retry_after, _FULL_SECONDS)

    def failed(self) -> None:
        """Record a call that failed because of it."""
        if self.ejection.failed():
            log.warning("replica ejected", tier=self._tier, replica=self.address)

    def lose(self) -> None:
        """End all its calls: it does not answer any more."""
        log.warning("replica lost", tier=self._tier, replica=self.address, calls=len(self._attempts))
        for attempt in tuple(self._attempts):
            attempt.end(_lost("a replica does not answer any more"))

    def move(self) -> None:
        """End the calls that another replica can take: this one drains."""
        for attempt in tuple(self._attempts):
            if attempt.movable:
                attempt.end(unavailable(Reason.SHUTTING_DOWN, "the replica is not SERVING any more"))
