"""What all endpoints that take JSON do around their own work."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from gateway.conductor import Conductor
from gateway.http.body import Bodies
from gateway.http.ignored import IgnoredFields
from gateway.keys.access import Admitted
from gateway.retry import Deadline
from serving.connections import Places
from serving.tasks import run_until

_INLINE_BYTES = 64 * 1024
"""Bodies up to this length are translated on the event loop; it takes less time than a switch to a thread."""

Work = Callable[[Scope, Receive, Send], Awaitable[None]]
R = TypeVar("R")


class Endpoint(ABC, Generic[R]):
    """An endpoint, as an ASGI application: it must notice a disconnect while nothing is sent.

    Args:
        conductor: Does the work.
        seconds: Time for a request.
        bodies: Receives its body.
        places: Requests that may run at once. A request takes its place when its body is complete, so that those that
            send none exclude nobody.
    """

    def __init__(self, conductor: Conductor, *, seconds: float, bodies: Bodies, places: Places) -> None:
        self._conductor = conductor
        self._seconds = seconds
        self._bodies = bodies
        self._places = places
        self._ignored = IgnoredFields()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        deadline = Deadline(self._seconds)
        self._places.check()
        with self._bodies.receive() as receiving:
            try:
                body = await receiving.read(Request(scope, receive), deadline)
            except ClientDisconnect:
                return
            with self._places.taken():
                if len(body) <= _INLINE_BYTES:
                    read, ignored = self.read(body, scope["request_id"])
                else:
                    read, ignored = await asyncio.to_thread(self.read, body, scope["request_id"])
                send = self._ignored.named(ignored, send)
                work = self.work(read, deadline, scope["admitted"])
                del body, read  # frees the files, in base64 and decoded
                receiving.release()
                await run_until(work(scope, receive, send), _gone(receive))

    @abstractmethod
    def read(self, body: bytes, request_id: str) -> tuple[R, list[str]]:
        """What a body asks for, and the fields in it that are ignored. Raises ServiceError."""

    @abstractmethod
    def work(self, read: R, deadline: Deadline, admitted: Admitted) -> Work:
        """What answers it, for an admitted client. It may raise ServiceError while nothing is sent."""


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
