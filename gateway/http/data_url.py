"""`data:` URLs, read as WHATWG's fetch standard reads them (its "data: URL processor" and Infra's forgiving-base64).

Phones and SDKs break base64 into lines, leave padding out, percent-encode it or leave the media type out; a browser
reads every one of those. vLLM's form for the frames of a video, `data:video/jpeg;base64,A,B,C`, is read, too.
"""

from __future__ import annotations

import base64
import binascii
import re
from urllib.parse import unquote_to_bytes

_HEAD = re.compile(r"[\x00-\x20]*data:([^,#]*),", re.IGNORECASE)
_BASE64 = re.compile(r";[ \t\n\r]*base64[ \t\n\f\r]*$", re.IGNORECASE)
_JPEG_FRAMES = re.compile(r"[ \t\n\r]*video/jpeg[ \t\n\r]*;", re.IGNORECASE)
_JPEG = b"\xff\xd8\xff"
_WHITESPACE = b"\t\n\f\r "
_SLICE_BYTES = 1 << 20  # a multiple of 4


def is_data_url(url: str) -> bool:
    """Whether it begins as a `data:` URL does."""
    return _HEAD.match(url) is not None


def decode(url: str) -> bytes:
    """The bytes of a `data:` URL; of frames, one JPEG after another.

    Decodes in slices, so that other threads run in between.

    Raises:
        ValueError: It is no `data:` URL, its base64 is not valid, or a frame is no JPEG.
    """
    head = _HEAD.match(url)
    if head is None:
        raise ValueError("not a data: URL")
    try:
        body = url[head.end() :].encode("ascii")
    except UnicodeEncodeError:
        body = url[head.end() :].encode()  # not valid in base64, and as it is in a percent-encoded body
    body, _, _ = body.partition(b"#")
    if b"%" in body:
        body = unquote_to_bytes(body)
    if not _BASE64.search(head[1]):
        return body
    body = body.translate(None, _WHITESPACE)
    if _JPEG_FRAMES.match(head[1]):
        return _frames(body)
    if b"," in body:
        raise ValueError("not valid base64: only the frames of a video, data:video/jpeg;base64,A,B,C, have commas")
    return _forgiving_base64(body)


def _frames(body: bytes) -> bytes:
    out = bytearray()
    for number, text in enumerate(body.split(b","), start=1):
        frame = _forgiving_base64(text)
        if not frame.startswith(_JPEG):
            raise ValueError(f"data:video/jpeg, and its frame {number} is no JPEG")
        out += frame
    return bytes(out)


def _forgiving_base64(text: bytes) -> bytes:
    if len(text) % 4 == 0:
        text = text[:-2] if text.endswith(b"==") else text[:-1] if text.endswith(b"=") else text
    if len(text) % 4 == 1 or text.endswith(b"="):
        raise ValueError("not valid base64")
    out = bytearray()
    try:
        for at in range(0, len(text), _SLICE_BYTES):
            piece = text[at : at + _SLICE_BYTES]
            out += base64.b64decode(piece + b"=" * (-len(piece) % 4), validate=True)
    except binascii.Error as error:
        raise ValueError("not valid base64") from error
    return bytes(out)
