"""HTTP/2 frames, written by hand: for clients that do what no gRPC library does."""

from __future__ import annotations

import struct
from collections.abc import Sequence

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

END_STREAM = 1
END_HEADERS = 4


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def settings(**values: int) -> bytes:
    """SETTINGS with `initial_window_size`, or with none."""
    numbers = {"initial_window_size": 4}
    return _frame(4, 0, 0, b"".join(struct.pack(">HI", numbers[name], value) for name, value in values.items()))


def _text(value: str) -> bytes:
    """A string of HPACK, without Huffman coding."""
    data = value.encode()
    if len(data) < 127:
        return bytes((len(data),)) + data
    left, length = len(data) - 127, bytearray(b"\x7f")
    while left >= 128:
        length.append(left % 128 + 128)
        left //= 128
    return bytes(length) + bytes((left,)) + data


def call(method: str, stream: int = 1, more: Sequence[tuple[str, str]] = (), kind: str = "application/grpc") -> bytes:
    """HEADERS of a gRPC call."""
    fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", method),
        (":authority", "gateway"),
        ("content-type", kind),
        ("te", "trailers"),
        *more,
    ]
    return _frame(1, END_HEADERS, stream, b"".join(b"\0" + _text(name) + _text(value) for name, value in fields))


def message(data: bytes, stream: int = 1, *, compressed: bool = False, end: bool = True) -> bytes:
    """DATA with one message of gRPC, in frames of the size that every server takes."""
    whole = struct.pack(">BI", compressed, len(data)) + data
    pieces = [whole[at : at + 16384] for at in range(0, len(whole), 16384)]
    last = len(pieces) - 1
    return b"".join(
        _frame(0, END_STREAM if end and number == last else 0, stream, piece) for number, piece in enumerate(pieces)
    )
