"""Reads the body of a request, with gzip or without, within a limit."""

from __future__ import annotations

import zlib

from starlette.requests import Request

from serving.errors import Reason, ServiceError, invalid, too_large

_GZIP = 16 + zlib.MAX_WBITS


async def read_body(request: Request, *, limit: int) -> bytes:
    """Read the whole body.

    Args:
        request: Its headers tell the length and the encoding.
        limit: Most bytes, as sent and after decompression.

    Raises:
        ClientDisconnect: The client left.
        ServiceError: RESOURCE_EXHAUSTED, it is over the limit; INVALID_ARGUMENT, it is not encoded as its header says,
            or in another way than gzip.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", "", "gzip", "x-gzip"):
        raise invalid("content-encoding", f"is {encoding[:32]!r}; use gzip, or send the body as it is")
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limit:
        raise _over(limit)
    unpack = zlib.decompressobj(_GZIP) if encoding.endswith("gzip") else None
    body = bytearray()
    received = 0
    async for piece in request.stream():
        received += len(piece)
        # One byte over the limit shows that it is too long; a decompression bomb is not expanded.
        body += piece if unpack is None else _unpacked(unpack, piece, limit + 1 - len(body))
        if max(received, len(body)) > limit:
            raise _over(limit)
    if unpack is not None and not unpack.eof:
        raise invalid("body", "is not complete gzip, which content-encoding says it is")
    return bytes(body)


def _unpacked(unpack: zlib._Decompress, piece: bytes, most: int) -> bytes:
    try:
        return unpack.decompress(piece, most)
    except zlib.error as error:
        raise invalid("body", "is not gzip, which content-encoding says it is") from error


def _over(limit: int) -> ServiceError:
    description = f"is longer than the limit of {limit} bytes (max_message_bytes)"
    return too_large("body", description, reason=Reason.BODY_TOO_LARGE, limit=limit)
