"""Names and limits of media that every service must agree on."""

from __future__ import annotations

import hashlib
import re

from serving.errors import invalid
from vlm.v1 import media_pb2

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_MAX_PIXELS = 1 << 31
_MAX_FRAMES = 4096
_MAX_FPS = 60.0


def media_digest(data: bytes) -> str:
    """Name media by content: `sha256:` and the hexadecimal digest of the file's bytes."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def is_digest(text: str) -> bool:
    """Whether `text` has the form that `media_digest` gives."""
    return _DIGEST.fullmatch(text) is not None


def check_options(options: media_pb2.MediaOptions, path: str) -> None:
    """Check how media become pixels.

    Args:
        options: As sent.
        path: Path of the options in the request, for errors.

    Raises:
        ServiceError: INVALID_ARGUMENT that names the field and its range.
    """
    sent = {descriptor.name: value for descriptor, value in options.ListFields()}
    for names, highest in (
        (("min_pixels", "max_pixels", "min_video_pixels", "max_video_pixels"), _MAX_PIXELS),
        (("min_frames", "max_frames"), _MAX_FRAMES),
    ):
        for name in names:
            if not 1 <= sent.get(name, 1) <= highest:
                raise invalid(f"{path}.{name}", f"is {sent[name]} and must be from 1 to {highest}")
    if not 0 < sent.get("fps", 1) <= _MAX_FPS:  # refuses NaN, too
        raise invalid(f"{path}.fps", f"is {options.fps:g} and must be greater than 0 and at most {_MAX_FPS:g}")
    for low, high in (
        ("min_pixels", "max_pixels"),
        ("min_frames", "max_frames"),
        ("min_video_pixels", "max_video_pixels"),
    ):
        if low in sent and high in sent and sent[low] > sent[high]:
            raise invalid(f"{path}.{high}", f"is {sent[high]}, less than {low}, which is {sent[low]}")
