"""The health of a server and of each of its services, over gRPC's health protocol."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

_Status = health_pb2.HealthCheckResponse


class Health(health_pb2_grpc.HealthServicer):
    """All services of a server have one status, as has the server itself under the empty name.

    The library's servicer writes to watchers while it holds a lock, so that one that does not read delays every change
    of the status, and it keeps every name that is ever asked for. This one does neither.

    Args:
        names: Full names of the services.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = frozenset(("", *names))
        self._serving = False
        self._stopping = False
        self._changed = asyncio.Event()

    def set(self, serving: bool) -> None:
        """Set the status; calls of `Watch` get it at once. Ignored after `stop`."""
        if not self._stopping:
            self._set(serving)

    def stop(self) -> None:
        """Set NOT_SERVING permanently."""
        self._stopping = True
        self._set(serving=False)

    def _set(self, serving: bool) -> None:
        self._serving = serving
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _status(self, name: str) -> int:
        if name not in self._names:
            return _Status.SERVICE_UNKNOWN
        return _Status.SERVING if self._serving else _Status.NOT_SERVING

    async def Check(  # noqa: N802  # as in the protocol
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> health_pb2.HealthCheckResponse:
        """Return the status of a service."""
        if request.service not in self._names:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
        return _Status(status=self._status(request.service))

    async def Watch(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """Send the status of a service, now and at every change."""
        sent = None
        while True:
            changed = self._changed
            if (status := self._status(request.service)) != sent:
                yield _Status(status=status)
                sent = status
            await changed.wait()
