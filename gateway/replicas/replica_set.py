"""All replicas of a tier: follows the addresses, watches each replica, and chooses one for each call."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Generic, Self, TypeVar

import grpc
import structlog

from gateway import metrics
from gateway.ports import ReplicaCount, Route
from gateway.replicas.discovery import RESOLVE_SECONDS, Discovery
from gateway.replicas.ejection import EjectionPolicy
from gateway.replicas.health import HealthMonitor, HealthPolicy
from gateway.replicas.replica import Attempt, Replica
from gateway.replicas.routing import Choose, choose
from serving.errors import Reason, unavailable
from serving.recent import Recent
from serving.tasks import cancel_and_wait

log = structlog.get_logger()

S = TypeVar("S")

Connect = Callable[[str, str], grpc.aio.Channel]
"""Opens a channel to one replica, from its address and the name in its certificate (empty: the address)."""


_KEYS = 16384
"""Keys of which the last replica is known: those of the most recent calls."""


class ReplicaSet(Generic[S]):
    """The replicas of one tier, while the block of `async with` runs.

    Args:
        tier: The tier's name, for logs and metrics.
        discovery: Finds the addresses.
        connect: Opens a channel to one.
        stub: Makes the stub on a channel.
        first_seconds: Longest wait for the first message of a call.
        health: When a replica that does not answer is given up.
        ejection: When a replica whose calls fail is left.
        resolve_seconds: Seconds between two readings of the addresses.
        choose: Chooses one replica by the key of a call and the loads.
    """

    def __init__(
        self,
        tier: str,
        discovery: Discovery,
        connect: Connect,
        stub: Callable[[grpc.aio.Channel], S],
        *,
        first_seconds: float = 20.0,
        health: HealthPolicy | None = None,
        ejection: EjectionPolicy | None = None,
        resolve_seconds: float = RESOLVE_SECONDS,
        choose: Choose = choose,
    ) -> None:
        self._tier = tier
        self._discovery = discovery
        self._connect = connect
        self._stub = stub
        self._first_seconds = first_seconds
        self._health = health or HealthPolicy()
        self._ejection = ejection or EjectionPolicy()
        self._resolve_seconds = resolve_seconds
        self._pick = choose
        self._last: Recent[bytes, str] = Recent(_KEYS, lambda address: 1)
        self._replicas: dict[str, Replica[S]] = {}
        self._watching: dict[str, asyncio.Task[None]] = {}
        self._following: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Connect to the replicas, and follow them."""
        await self._refresh()
        self._following = asyncio.create_task(self._follow(), name=f"replicas of {self._tier}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close all connections."""
        if self._following is not None:
            await cancel_and_wait(self._following)
        for address in tuple(self._replicas):
            await self._remove(address)

    @property
    def count(self) -> ReplicaCount:
        """How many replicas there are, and how many of them get calls."""
        available = self._available()
        return ReplicaCount(
            available=len(available),
            known=sum(not replica.leaving for replica in self._replicas.values()),
            ejected=sum(replica.ejection.ejected for replica in available),
        )

    def _available(self) -> list[Replica[S]]:
        healthy = [replica for replica in self._replicas.values() if replica.healthy]
        return [replica for replica in healthy if not replica.leaving] or healthy

    @contextlib.contextmanager
    def attempt(self, route: Route) -> Iterator[Attempt[S]]:
        """Choose a replica for one call; its load counts while the block runs.

        Args:
            route: What the call is, and where it was attempted before. The choice is recorded in it.

        Raises:
            ServiceError: UNAVAILABLE if no replica is available.
        """
        replica = self._choose(route)
        with replica.attempt(route, self._first_seconds) as attempt:
            yield attempt

    def _choose(self, route: Route) -> Replica[S]:
        available = self._available()
        if not available:
            known = self.count.known
            raise unavailable(Reason.NO_REPLICA, f"none of its replicas is available ({known} known)")
        untried = [replica for replica in available if replica.address not in route.tried]
        # If nothing better is left, also an ejected replica, or one that was tried.
        candidates = [replica for replica in untried if replica.preferred] or untried or available
        chosen = self._replicas[self._address(route, candidates)]
        if route.key is not None:
            self._last.put(route.key, chosen.address)
        route.tried.add(chosen.address)
        route.alternatives = any(replica.address not in route.tried for replica in available)
        return chosen

    def _address(self, route: Route, candidates: list[Replica[S]]) -> str:
        loads = {replica.address: replica.load for replica in candidates}
        if route.key is None:
            return self._pick(secrets.token_bytes(8), loads, route.slack, None)
        if route.joins:
            for replica in candidates:
                if replica.runs(route.key):
                    return replica.address
        return self._pick(route.key, loads, route.slack, self._last.get(route.key))

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(self._resolve_seconds)
            await self._refresh()

    async def _refresh(self) -> None:
        """Add replicas that are new, and let those that have vanished end their calls."""
        addresses = await self._discovery.addresses()
        for address in addresses or ():
            if (replica := self._replicas.get(address)) is None:
                self._add(address)
            else:
                replica.leaving = False
        for replica in tuple(self._replicas.values()):
            if addresses is not None and replica.address not in addresses and not replica.leaving:
                log.info("replica leaves", tier=self._tier, replica=replica.address)
                replica.leaving = True
            if replica.leaving and replica.idle:
                await self._remove(replica.address)
        metrics.count_replicas(self._tier, self.count)

    def _add(self, address: str) -> None:
        log.info("replica found", tier=self._tier, replica=address)
        channel = self._connect(address, self._discovery.authority)
        replica = Replica(self._tier, address, channel, self._stub, self._ejection)
        self._replicas[address] = replica
        watching = HealthMonitor(replica, self._health, lambda: self._drained(replica)).run()
        self._watching[address] = asyncio.create_task(watching, name=f"health of {address}")

    def _drained(self, replica: Replica[S]) -> None:
        """Move calls of a replica that drains, if there is another. Else they have its grace period."""
        if self._available():
            replica.move()

    async def _remove(self, address: str) -> None:
        await cancel_and_wait(self._watching.pop(address))
        await self._replicas.pop(address).channel.close()
