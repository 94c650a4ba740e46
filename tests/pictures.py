"""Images and clips for tests, as files in memory."""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction

import av
import numpy as np
from PIL import Image


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """An image that is like no other: coloured noise, smooth enough that resizing keeps it."""
    coarse = np.random.default_rng(seed).integers(
        0, 256, (max(2, height // 16), max(2, width // 16), 3), dtype=np.uint8
    )
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def png(image: Image.Image) -> bytes:
    """The image as a PNG file: lossless."""
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def video(frames: Sequence[Image.Image], fps: int) -> bytes:
    """The frames as a Matroska file with the lossless FFV1 codec, in RGB: they come back as they went."""
    out = io.BytesIO()
    with av.open(out, "w", format="matroska") as container:
        stream = container.add_stream("ffv1", rate=fps)
        stream.width, stream.height = frames[0].size
        stream.pix_fmt = "bgr0"
        stream.time_base = Fraction(1, fps)
        for index, image in enumerate(frames):
            frame = av.VideoFrame.from_image(image)
            frame.pts = index
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return out.getvalue()
