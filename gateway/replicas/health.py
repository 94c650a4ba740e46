"""Watches one replica: its own word (health), and whether it answers at all (probes)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gateway.replicas.replica import Replica
from serving.tasks import gather_or_cancel

log = structlog.get_logger()

_EVERYTHING = health_pb2.HealthCheckRequest()
"""The empty name is the server as a whole."""

_SERVING = (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.RESOURCE_EXHAUSTED)
"""Statuses of servers that serve: one without a health service, and one with too many calls for this one."""

_AGAIN_SECONDS = 0.25
"""Pause before a status that is not SERVING is read again, and before a lost connection is tried again."""


@dataclass(frozen=True)
class HealthPolicy:
    """When a replica that does not answer is given up.

    Attributes:
        interval: Seconds between an answered probe and the next.
        suspect: Seconds without an answer after which other replicas are preferred.
        lost: Seconds without an answer after which its calls are ended: two probes, each of half the time. One is not
            enough, since the time may have passed while the gateway itself stood still.
    """

    interval: float = 1.0
    suspect: float = 1.0
    lost: float = 5.0


class HealthMonitor:
    """Keeps the fields `serving`, `responsive` and `suspect` of a replica.

    A process that is stopped, or whose machine has lost its network, does not say NOT_SERVING, and its connection stays
    open. So a cheap call is made all the time, which the replica's event loop answers also while its engine is busy.

    Args:
        replica: The replica.
        policy: The limits.
        on_draining: Called when the replica states that it is NOT_SERVING.
    """

    def __init__(self, replica: Replica[Any], policy: HealthPolicy, on_draining: Callable[[], None]) -> None:
        self._replica = replica
        self._on_draining = on_draining
        self._policy = policy
        self._stub: Any = health_pb2_grpc.HealthStub(replica.channel)

    async def run(self) -> None:
        """Watch until cancelled."""
        await gather_or_cancel((self._watch(), self._probe()))

    async def _watch(self) -> None:
        """Follow the health of the replica. A server without a health service counts as SERVING."""
        while True:
            pause = _AGAIN_SECONDS
            watch = self._stub.Watch(_EVERYTHING, wait_for_ready=True)
            try:
                async for reply in watch:
                    self._replica.serving = reply.status == health_pb2.HealthCheckResponse.SERVING
                    pause = 0.0  # if the connection ends now, as old ones do, there may be another at once
                    if not self._replica.serving:
                        self._on_draining()
                        pause = _AGAIN_SECONDS
                        break  # a server that drains waits for the end of its calls, this one included
            except grpc.aio.AioRpcError as error:
                self._replica.serving = error.code() in _SERVING
            else:
                self._replica.serving = False
            finally:
                watch.cancel()
            await asyncio.sleep(pause)

    async def _probe(self) -> None:
        """Call the replica all the time. After two probes without an answer its calls are ended."""
        missed = 0
        while True:
            began = time.monotonic()
            answered = await self._answers()
            if answered is None:  # no connection: its calls have failed
                missed = 0
                self._replica.responsive = False
                await asyncio.sleep(_AGAIN_SECONDS)
            elif answered or self._replica.last_heard > began:
                missed = 0
                self._replica.responsive = True
                await asyncio.sleep(self._policy.interval)
            else:
                missed += 1
                if missed >= 2 and self._replica.responsive:
                    self._replica.responsive = False
                    self._replica.lose()

    async def _answers(self) -> bool | None:
        """Whether the replica answers a call in time, with whatever status; None: there is no connection."""
        call = self._stub.Check(_EVERYTHING, timeout=self._policy.lost / 2)
        late = asyncio.get_running_loop().call_later(self._policy.suspect, self._suspect)
        try:
            await call
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                return None
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                return False  # and it stays suspect
        finally:
            late.cancel()
            call.cancel()
        self._replica.suspect = False
        return True

    def _suspect(self) -> None:
        self._replica.suspect = True
