"""Writes a clip as a video file."""

from __future__ import annotations

import io
from fractions import Fraction
from typing import Any, Protocol

import av
import numpy as np
from PIL import Image

_FRAMES_PER_SECOND = 12


class Moving(Protocol):
    """A picture that changes with time, width x height pixels."""

    @property
    def width(self) -> int:
        """Even."""

    @property
    def height(self) -> int:
        """Even."""

    def frame(self, time: float) -> Image.Image:
        """The picture at a time from 0, the start, to 1, the end."""


def encode_clip(clip: Moving, seconds: float) -> bytes:
    """The clip as an MP4 file (H.264, so its width and height must be even) that lasts so many seconds."""
    count = max(2, round(seconds * _FRAMES_PER_SECOND))
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream: Any = container.add_stream("libx264", rate=_FRAMES_PER_SECOND, options={"crf": "20"})
        stream.width, stream.height, stream.pix_fmt = clip.width, clip.height, "yuv420p"
        for index in range(count):
            frame = av.VideoFrame.from_ndarray(np.asarray(clip.frame(index / (count - 1))), format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, _FRAMES_PER_SECOND)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return out.getvalue()
