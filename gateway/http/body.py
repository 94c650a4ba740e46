"""Receives the bodies of requests, with gzip or without, within limits of size, memory and time."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from starlette.requests import Request

from gateway.retry import Deadline
from serving.errors import Reason, ServiceError, failure, invalid, overloaded, too_large

_GZIP = 16 + zlib.MAX_WBITS

_LEAST_BYTES_PER_SECOND = 64 * 1024
"""Each so many bytes give a body one more second."""

_FREE_BYTES = 64 * 1024
"""Of each body that are not counted, so that a request without media is served while large bodies fill the memory."""

_STEP_BYTES = 1 << 20
"""Of decompressed data at a time."""


class Bodies:
    """The bodies that are being received.

    Args:
        limit: Most bytes of one, as sent and after decompression.
        total: Most bytes of all.
        seconds: Time for one, besides the time that its size allows.
    """

    def __init__(self, *, limit: int, total: int = 1 << 30, seconds: float = 30.0) -> None:
        self.limit = limit
        self.total = total
        self.seconds = seconds
        self.held = 0

    def receive(self) -> Receiving:
        """One more body."""
        return Receiving(self)


class Receiving:
    """One body. A context manager: its bytes no longer count after the block.

    Args:
        bodies: All of them.
    """

    def __init__(self, bodies: Bodies) -> None:
        self._bodies = bodies
        self._held = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def release(self) -> None:
        """Count its bytes no longer."""
        self._bodies.held -= self._held
        self._held = 0

    async def read(self, request: Request, deadline: Deadline) -> bytes:
        """Read the whole body.

        Args:
            request: Its headers tell the length and the encoding.
            deadline: The request's deadline, which covers the body.

        Raises:
            ClientDisconnect: The client left.
            ServiceError: RESOURCE_EXHAUSTED, it is over the limit, or too much of others is held; DEADLINE_EXCEEDED, it
                does not come in time; INVALID_ARGUMENT, it is not encoded as its header says, or in another way than
                gzip.
        """
        encoding = request.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("identity", "", "gzip", "x-gzip"):
            raise invalid("content-encoding", f"is {encoding[:32]!r}; use gzip, or send the body as it is")
        announced = request.headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > self._bodies.limit:
            raise self._over()
        unpack = zlib.decompressobj(_GZIP) if encoding.endswith("gzip") else None
        body = bytearray()
        try:
            async with asyncio.timeout(None) as until:
                await self._fill(body, request, unpack, until, deadline)
        except TimeoutError:
            deadline.remaining()
            message = (
                f"the body did not arrive within {self._bodies.seconds:g} seconds (receive_timeout_seconds), and one "
                f"more for each {_LEAST_BYTES_PER_SECOND // 1024} KiB, or paused for as long"
            )
            raise failure(Reason.RECEIVE_TIMEOUT, message) from None
        if unpack is not None and not unpack.eof:
            raise invalid("body", "is not complete gzip, which content-encoding says it is")
        return bytes(body)

    async def _fill(
        self,
        body: bytearray,
        request: Request,
        unpack: zlib._Decompress | None,
        until: asyncio.Timeout,
        deadline: Deadline,
    ) -> None:
        now = asyncio.get_running_loop().time
        last = now() + deadline.remaining()
        start = now() + self._bodies.seconds
        received = 0
        until.reschedule(min(start, last))
        async for piece in request.stream():
            received += len(piece)
            # What has arrived gives more time, but not for silence: large bodies that stop would hold their memory.
            until.reschedule(min(start + received / _LEAST_BYTES_PER_SECOND, now() + self._bodies.seconds, last))
            if received > self._bodies.limit:
                raise self._over()
            for data in (piece,) if unpack is None else _unpacked(unpack, piece):
                # Checked before it is kept: a decompression bomb is not expanded.
                if len(body) + len(data) > self._bodies.limit:
                    raise self._over()
                self._hold(len(body) + len(data))
                body += data
                if unpack is not None:
                    await asyncio.sleep(0)  # others must be served meanwhile

    def _hold(self, length: int) -> None:
        held = max(0, length - _FREE_BYTES)
        bodies = self._bodies
        if bodies.held + held - self._held > bodies.total:
            message = f"the bodies of other requests fill the memory for them, {bodies.total} bytes "
            raise overloaded(Reason.BODY_MEMORY_FULL, message + "(max_buffered_body_bytes)", retry_after=2.0)
        bodies.held += held - self._held
        self._held = held

    def _over(self) -> ServiceError:
        description = f"is longer than the limit of {self._bodies.limit} bytes (max_message_bytes)"
        return too_large("body", description, reason=Reason.BODY_TOO_LARGE, limit=self._bodies.limit)


def _unpacked(unpack: zlib._Decompress, piece: bytes) -> Iterator[bytes]:
    while piece:
        if unpack.eof:
            raise invalid("body", "goes on behind the end of its gzip data; send it as one gzip stream")
        try:
            yield unpack.decompress(piece, _STEP_BYTES)
        except zlib.error as error:
            raise invalid("body", "is not gzip, which content-encoding says it is") from error
        piece = unpack.unconsumed_tail or unpack.unused_data  # the rest of this stream, or what follows it
