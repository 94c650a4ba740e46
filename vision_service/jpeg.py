"""The segments of JPEG files: where an image ends, and whether only the end is missing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

SIGNATURE = b"\xff\xd8\xff"

_SOI, _EOI, _SOS = 0xD8, 0xD9, 0xDA
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Markers of a frame header; the other three are tables and an extension."""

# Within pixels, a zero follows each byte of ones, and restart markers (D0 to D7) may appear.
_MARKER = re.compile(rb"\xff([\xc0-\xcf\xd8-\xfe])")
_RESTART = re.compile(rb"\xff([\xd0-\xd7])")

_COEFFICIENTS = range(64)


class Segment(NamedTuple):
    """One segment: its marker, and where its content starts and ends in the file."""

    marker: int
    start: int
    end: int


def segments(data: bytes, start: int = 0) -> Iterator[Segment]:
    """The segments of the image that begins at `start`.

    The last is the end of the image, or the beginning of the next one if there is no end; neither if the file breaks
    off before.
    """
    at = start + 2
    while found := _MARKER.search(data, at):
        marker = found[1][0]
        if marker in (_SOI, _EOI):
            yield Segment(marker, found.start() if marker == _SOI else found.end(), found.end())
            return
        at = found.end() + int.from_bytes(data[found.end() : found.end() + 2])
        if at > len(data):
            return
        yield Segment(marker, found.end() + 2, at)


def split(data: bytes) -> Iterator[tuple[int, int]]:
    """Start and end of each image of a file in which one JPEG follows another."""
    start = data.find(SIGNATURE)
    while start >= 0:
        end = len(data)
        for marker, first, _ in segments(data, start):
            if marker in (_SOI, _EOI):
                end = first
        yield start, end
        start = data.find(SIGNATURE, end)


def with_ends(data: bytes) -> Iterator[bytes]:
    """A file that breaks off, with three different ends.

    If the pixels are complete, and only the marker of the end is missing, the image is the same with each of them. If
    not, the decoder takes the first bits of the end for pixels, and the images differ.

    Yields:
        Files; none if a scan is missing: then the image would be the same with each, but coarse or without colour.
    """
    if not _has_all_scans(data):
        return
    data = data.rstrip(b"\xff")  # the first half of a marker
    restarts = _RESTART.findall(data, max(0, len(data) - (1 << 20)))
    restart = b"\xff" + bytes([0xD0 + (restarts[-1][0] + 1) % 8 if restarts else 0xD0])
    # No Huffman code is a beginning of all three. Ones alone would be none, which the decoder reads as a zero.
    for bits in (b"\0" * 64, b"\x55" * 64, b"\xaa" * 64):
        yield data + bits + restart + bits + b"\xff\xd9"


def _has_all_scans(data: bytes) -> bool:
    """Whether there is a scan, whole or not, for the last bit of each coefficient of each component."""
    missing: dict[int, set[int]] = {}
    progressive = False
    for marker, start, end in segments(data):
        content = data[start:end]
        if marker in _FRAMES and len(content) >= 6:
            progressive = marker in (0xC2, 0xC6, 0xCA, 0xCE)
            missing = {component: set(_COEFFICIENTS) for component in content[6::3]}
        elif marker == _SOS and len(content) >= 6:
            components = content[1:-3:2]
            first, last, bits = content[-3:]
            for component in components:
                if not progressive:
                    missing[component] = set()
                elif bits & 0x0F == 0:
                    missing.get(component, set()).difference_update(range(first, last + 1))
    return bool(missing) and not any(missing.values())
