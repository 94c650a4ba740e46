"""What the content of an image or a video can be read from. Pillow and numpy are imported only where one is given."""

from __future__ import annotations

import base64
import io
import os
import re
import struct
import sys
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard
from urllib.parse import unquote_to_bytes

from serving.files import read_regular

if TYPE_CHECKING:
    import numpy as np
    import PIL.Image


class Readable(Protocol):
    """A file opened in binary mode."""

    def read(self, size: int = -1, /) -> bytes: ...  # noqa: D102


FileSource = bytes | bytearray | memoryview | str | os.PathLike[str] | Readable
"""A file: its bytes, its path, a `data:` URL, or the open file, which is read from its position."""

if TYPE_CHECKING:
    ImageSource = FileSource | PIL.Image.Image | np.ndarray[Any, np.dtype[Any]]
    """A file, an image of Pillow, or an array of uint8: [height, width], or [height, width, 1, 3 or 4] in RGB order."""

VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm"})

_URL = re.compile(r"https?://", re.IGNORECASE)
_EXACT_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")  # PNG holds them as they are
_PNG_COLOUR_TYPES = {1: 0, 3: 2, 4: 6}  # by the number of channels


def name_of(source: object) -> str:
    """The path of a path or an open file; empty if it has none."""
    if isinstance(source, os.PathLike | str):
        return "" if _is_data_url(source) else os.fspath(source)
    name = getattr(source, "name", "")
    return name if isinstance(name, str) else ""


def read_file(source: FileSource) -> bytes:
    """The bytes of a file.

    Raises:
        OSError: It cannot be read, or its path is that of a pipe or a device.
        TypeError: It is not a `FileSource`.
        ValueError: It is a URL that has no content in itself, or an open file at its end.
    """
    match source:
        case bytes():
            return source
        case bytearray() | memoryview():
            return bytes(source)
        case str() if _is_data_url(source):
            return _data_url(source)
        case str() if _URL.match(source):
            raise ValueError(f"{source[:80]} is not fetched: download the file and give its path or its bytes")
        case str() | os.PathLike():
            return read_regular(Path(source))
    read = getattr(source, "read", None)
    if not callable(read):
        raise TypeError(f"a file is bytes, a path or a file object, not {type(source).__name__}")
    data: object = read()
    if not isinstance(data, bytes):
        raise TypeError(f"the file object reads {type(data).__name__}: open it in binary mode")
    if not data:
        raise ValueError("nothing is left to read of the file object: call seek(0) before")
    return data


def read_image(source: ImageSource) -> bytes:
    """The bytes of an image file; pixels are written as PNG, which loses nothing.

    Raises:
        OSError: The file cannot be read.
        TypeError: It is not an `ImageSource`.
        ValueError: Its pixels are not 8 bits of grey, RGB or RGBA, or as for `read_file`.
    """
    if _is_pillow(source):
        return _pillow_png(source)
    if _is_array(source):
        return _array_png(source)
    return read_file(source)  # type: ignore[arg-type]  # what is left; anything else is its TypeError


def _is_pillow(source: object) -> TypeGuard[PIL.Image.Image]:
    module = sys.modules.get("PIL.Image")  # who has such an image has imported it
    return module is not None and isinstance(source, module.Image)


def _is_array(source: object) -> TypeGuard[np.ndarray[Any, np.dtype[Any]]]:
    module = sys.modules.get("numpy")
    return module is not None and isinstance(source, module.ndarray)


def _is_data_url(source: object) -> bool:
    return isinstance(source, str) and source[:5].lower() == "data:"


def _data_url(url: str) -> bytes:
    kind, comma, content = url.partition(",")
    if not comma:
        raise ValueError("the data: URL has no comma before its content")
    data = unquote_to_bytes(content)
    if not kind.lower().replace(" ", "").endswith(";base64"):
        return data
    try:
        return base64.b64decode(b"".join(data.split()), validate=True)
    except ValueError as error:
        raise ValueError(f"the content of the data: URL is no base64: {error}") from None


def _pillow_png(image: PIL.Image.Image) -> bytes:
    from PIL import ImageOps  # noqa: PLC0415  # it is there: the image is of it

    upright = ImageOps.exif_transpose(image)  # as the server turns files; a PNG would not have the tag
    if upright.mode in ("I", "F"):
        raise ValueError(f"the image's mode {upright.mode!r} has no white level: convert it to 'RGB' or 'L'")
    if upright.mode not in _EXACT_MODES:
        upright = upright.convert({"RGBa": "RGBA", "La": "LA", "PA": "RGBA"}.get(upright.mode, "RGB"))
    file = io.BytesIO()
    upright.save(file, "PNG", compress_level=1)
    return file.getvalue()


def _array_png(array: np.ndarray[Any, np.dtype[Any]]) -> bytes:
    pixels = array[:, :, None] if array.ndim == 2 else array
    if array.dtype != "uint8" or pixels.ndim != 3 or pixels.shape[2] not in _PNG_COLOUR_TYPES or 0 in pixels.shape:
        raise ValueError(
            f"the array is {array.dtype} {list(array.shape)}: it must be uint8 [height, width] or "
            "[height, width, channels] with 1, 3 (RGB) or 4 (RGBA) channels"
        )
    height, width, channels = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)  # each row begins with its filter: none
    header = struct.pack(">IIBBBBB", width, height, 8, _PNG_COLOUR_TYPES[channels], 0, 0, 0)
    # Pillow would write it as well, but a client need not have it.
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 1)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_png_chunk(kind, data) for kind, data in parts)


def _png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
