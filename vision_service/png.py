"""The chunks of PNG files, and files without the chunks that no pixel depends on."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

SIGNATURE = b"\x89PNG\r\n\x1a\n"

_ANCILLARY = 0x20
"""Bit of a chunk's first letter: a decoder may ignore the chunk."""

_NEEDED = frozenset({b"tRNS", b"eXIf", b"acTL", b"fcTL", b"fdAT"})
"""Ancillary chunks that are used: transparency, orientation, animation."""

_TEXTS = frozenset({b"tEXt", b"zTXt", b"iTXt"})

_ORIENTATION_KEYWORDS = frozenset({b"Raw profile type exif", b"XML:com.adobe.xmp"})
"""Keywords of texts in which older programs keep the orientation."""

_MAX_TEXT_BYTES = 1 << 20
"""Most bytes of a text that is kept, decompressed. Pillow refuses the file over this limit."""


class Chunk(NamedTuple):
    """One chunk: its type, and where it starts and ends in the file. Eight bytes precede its data, four follow."""

    kind: bytes
    start: int
    end: int


def chunks(data: bytes) -> Iterator[Chunk]:
    """The whole chunks of a PNG, up to its end or to where it breaks off."""
    at = len(SIGNATURE)
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if end > len(data):
            return
        yield Chunk(kind, at, end)
        if kind == b"IEND":
            return
        at = end


def without_extras(data: bytes) -> bytes:
    """The same PNG without texts, colour profiles and other chunks that no pixel depends on.

    The decoder would decompress them, and refuse the picture over a limit or for damage in them.
    """
    view = memoryview(data)
    out = bytearray()
    kept_to = 0
    seen: set[bytes] = set()
    for kind, start, end in chunks(data):
        if not kind[0] & _ANCILLARY or kind in _NEEDED:
            continue
        keyword = data[start + 8 : start + 8 + 80].partition(b"\0")[0] if kind in _TEXTS else b""
        if keyword in _ORIENTATION_KEYWORDS and keyword not in seen:
            seen.add(keyword)
            if _is_small(kind, data[start + 8 + len(keyword) + 1 : end - 4]):
                continue
        out += view[kept_to:start]
        kept_to = end
    if not kept_to:
        return data
    out += view[kept_to:]
    return bytes(out)


def _is_small(kind: bytes, rest: bytes) -> bool:
    """Whether a text is under the limit. `rest`: what follows its keyword."""
    if kind == b"tEXt" or (kind == b"iTXt" and rest[:1] == b"\0"):
        return len(rest) <= _MAX_TEXT_BYTES
    # A method, or a flag, a method, a language and a translated keyword; then a zlib stream.
    stream = rest[1:] if kind == b"zTXt" else rest[2:].split(b"\0", 2)[-1]
    decompressor = zlib.decompressobj()
    try:
        decompressor.decompress(stream, _MAX_TEXT_BYTES)
    except zlib.error:
        return False
    return not decompressor.unconsumed_tail
