"""Video files for tests."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from tests.pictures import noise

# Containers by the ending of the file's name; a codec that each of them takes.
CODECS = {"mp4": "libx264", "mov": "mpeg4", "mkv": "libx264", "webm": "libvpx", "avi": "mpeg4"}


def write_clip(
    path: Path,
    frames: Sequence[Image.Image],
    *,
    fps: int = 10,
    times: Sequence[int] | None = None,
    rotation: int = 0,
    index_first: bool = False,
) -> bytes:
    """Encode frames into a file and read it back.

    Args:
        path: Where; its ending chooses the container and the codec.
        frames: All of one size.
        fps: Frames a second.
        times: When each frame is shown, in 1/fps seconds; one after another unless it is given.
        rotation: Degrees that the file asks to be turned by when it is shown.
        index_first: Put an MP4's index before its pictures.
    """
    options = {"movflags": "faststart"} if index_first else {}
    with av.open(path, "w", options=options) as container:
        stream: Any = container.add_stream(CODECS[path.suffix[1:]], rate=fps)
        stream.width, stream.height = frames[0].size
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 2_000_000
        if rotation:
            stream.set_display_rotation(rotation)
        for index, image in enumerate(frames):
            frame = av.VideoFrame.from_image(image)
            frame.pts = index if times is None else times[index]
            frame.time_base = Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path.read_bytes()


def write_sound(path: Path) -> bytes:
    """A file of silence, without pictures."""
    with av.open(path, "w") as container:
        stream: Any = container.add_stream("aac", rate=16_000)
        for index in range(8):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16_000, index * 1024
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path.read_bytes()


def noises(count: int, width: int = 96, height: int = 64) -> list[Image.Image]:
    """Frames that all differ."""
    return [noise(width, height, seed) for seed in range(count)]
