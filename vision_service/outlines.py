"""Frames, durations and size of GIFs, animated PNGs and animated WebPs, read without decoding a pixel.

Pillow decodes all frames up to one to tell its duration, and allocates a GIF's frames before their size can be checked.
"""

from __future__ import annotations

import itertools
import struct
from dataclasses import dataclass, field

from vision_service.png import SIGNATURE as PNG
from vision_service.png import chunks

_GIF = (b"GIF87a", b"GIF89a")
_GIF_HEAD_BYTES = 13

_TOO_SHORT = 0.01
_INSTEAD = 0.1
"""Frames of this duration or less, in seconds, are shown for a tenth of a second, as in browsers."""


@dataclass
class Outline:
    """What the headers of an animated image say.

    Attributes:
        width: Pixels of a row, of the largest frame.
        height: Rows, of the largest frame.
        durations: Of each frame, in seconds.
        skipped: Frames before the first one of the animation: a PNG may have a picture for those who show no animation.
        whole: Whether the file goes on to its end.
    """

    width: int
    height: int
    durations: list[float] = field(default_factory=list)
    skipped: int = 0
    whole: bool = False

    def add(self, seconds: float) -> None:
        """Add a frame."""
        self.durations.append(_INSTEAD if seconds <= _TOO_SHORT else seconds)


def canvas_of(data: bytes) -> tuple[int, int] | None:
    """Width and height of what Pillow allocates when it opens a GIF or a WebP; None for other files."""
    if _is_gif(data):
        outline = _gif_outline(data, most=1)
        return outline.width, outline.height
    if _is_webp(data) and data[12:16] == b"VP8X" and len(data) >= 30:
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
        return width, height
    return None


def is_animated(data: bytes) -> bool:
    """Whether it is an animated image. A GIF of one frame counts as one."""
    if data.startswith(PNG):
        before_pixels = itertools.takewhile(lambda chunk: chunk.kind != b"IDAT", chunks(data))
        return any(chunk.kind == b"acTL" for chunk in before_pixels)
    return _is_gif(data) or (_is_webp(data) and canvas_of(data) is not None and bool(data[20] & 0x02))


def outline_of(data: bytes) -> Outline:
    """The outline of an animated image."""
    if _is_gif(data):
        return _gif_outline(data)
    if data.startswith(PNG):
        return _png_outline(data)
    return _webp_outline(data)


def _is_gif(data: bytes) -> bool:
    return data.startswith(_GIF) and len(data) >= _GIF_HEAD_BYTES


def _is_webp(data: bytes) -> bool:
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP"


def _gif_outline(data: bytes, most: int | None = None) -> Outline:
    """The outline of a GIF, or of its first frames. `most`: how many; None for all."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    outline = Outline(width, height)
    at = _GIF_HEAD_BYTES + _table_bytes(flags)
    seconds = 0.0
    try:
        while at < len(data) and data[at] != 0x3B and (most is None or len(outline.durations) < most):
            if data[at] == 0x21:  # an extension
                if data[at + 1] == 0xF9:
                    seconds = int.from_bytes(data[at + 4 : at + 6], "little") / 100
                at = _after_blocks(data, at + 2)
            elif data[at] == 0x2C:  # a frame
                left, top, width, height, flags = struct.unpack_from("<4HB", data, at + 1)
                outline.width = max(outline.width, left + width)
                outline.height = max(outline.height, top + height)
                at = _after_blocks(data, at + 11 + _table_bytes(flags))
                outline.add(seconds)
                seconds = 0.0
            else:
                at += 1
    except (IndexError, struct.error):
        return outline
    outline.whole = True  # also without the byte that ends the file
    return outline


def _table_bytes(flags: int) -> int:
    """Length of the colour table that the flags announce."""
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _after_blocks(data: bytes, at: int) -> int:
    while data[at]:
        at += data[at] + 1
    return at + 1


def _png_outline(data: bytes) -> Outline:
    outline = Outline(0, 0)
    for kind, start, end in chunks(data):
        content = data[start + 8 : end - 4] if kind in (b"IHDR", b"fcTL") else b""
        if kind == b"IHDR" and len(content) >= 8:
            outline.width, outline.height = struct.unpack_from(">II", content)
        elif kind == b"IDAT" and not outline.durations:
            outline.skipped = 1
        elif kind == b"fcTL" and len(content) >= 24:
            numerator, denominator = struct.unpack_from(">HH", content, 20)
            outline.add(numerator / (denominator or 100))
        elif kind == b"IEND":
            outline.whole = True
    return outline


def _webp_outline(data: bytes) -> Outline:
    outline = Outline(*(canvas_of(data) or (0, 0)))
    at = 12
    while at + 8 <= len(data):
        kind, size = struct.unpack_from("<4sI", data, at)
        if at + 8 + size > len(data):
            return outline
        if kind == b"ANMF" and size >= 16:
            outline.add(int.from_bytes(data[at + 20 : at + 23], "little") / 1000)
        at += 8 + size + size % 2
    outline.whole = int.from_bytes(data[4:8], "little") + 8 <= len(data)
    return outline
