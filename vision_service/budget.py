"""How many pixels media may become where a request is silent: by the device, unless a setting says otherwise."""

from __future__ import annotations

from typing import Literal

from vision_service.media import Options
from vlm.v1 import media_pb2

Setting = int | Literal["published"] | None
"""Of one bound: a number, the checkpoint's own, or None for the device's."""

_CPU = media_pb2.MediaOptions(max_pixels=1 << 20, max_video_pixels=1 << 21, max_frames=32)
"""Encoding takes seconds so, where published limits (those of Qwen3-VL) take a CPU half an hour."""


def published_budget(published: Options) -> media_pb2.MediaOptions:
    """The checkpoint's own settings, as EncoderInfo tells them."""
    return media_pb2.MediaOptions(**vars(published))


def default_budget(
    published: Options, *, on_cpu: bool, max_pixels: Setting, max_video_pixels: Setting, max_frames: Setting
) -> media_pb2.MediaOptions:
    """The budget of requests that name none. Where the device decides, never more than the checkpoint's own.

    Args:
        published: The checkpoint's own settings.
        on_cpu: Whether the encoder runs on a CPU; on a GPU the published limits are the default.
        max_pixels: Greatest area of an image.
        max_video_pixels: Greatest volume of a video, in pixels of all its frames.
        max_frames: Most frames of a video.
    """
    budget = media_pb2.MediaOptions()
    for name, setting in (
        ("max_pixels", max_pixels),
        ("max_video_pixels", max_video_pixels),
        ("max_frames", max_frames),
    ):
        own = int(getattr(published, name))
        of_device = min(own, getattr(_CPU, name)) if on_cpu else own
        setattr(budget, name, of_device if setting is None else own if setting == "published" else setting)
    return budget
