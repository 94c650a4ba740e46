"""Generated clips, all different: a view that moves over enlarged noise."""

from __future__ import annotations

import io

from PIL import Image

from benchmarks.photo import Photos
from demo.video import encode_clip


class Pan:
    """A square view that moves over a photo, from its left to its right. See `demo.video.Moving`.

    Args:
        photo: JPEG file, wider than high.
    """

    def __init__(self, photo: bytes) -> None:
        self._photo = Image.open(io.BytesIO(photo))
        self.width = self.height = self._photo.height

    def frame(self, time: float) -> Image.Image:
        """The frame at a time, in seconds."""
        left = round(time * (self._photo.width - self.width))
        return self._photo.crop((left, 0, left + self.width, self.height))


def make_clip(seed: int, edge: int, seconds: float) -> bytes:
    """An MP4 file with frames of this width and height, in pixels."""
    return encode_clip(Pan(Photos(seed).make((2 * edge, edge))), seconds)
