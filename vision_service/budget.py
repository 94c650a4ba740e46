"""The default budget of pixels: by the device, unless a setting overrides it."""

from __future__ import annotations

from typing import Literal

from vision_service.media import Options
from vlm.v1 import media_pb2

Setting = int | Literal["published"] | None
"""A setting of one bound: a number, the checkpoint's own, or None for the device's."""

_CPU = media_pb2.MediaOptions(max_pixels=1 << 20, max_video_pixels=1 << 21, max_frames=32)
"""With this, encoding on a CPU takes seconds; with Qwen3-VL's published limits it takes half an hour."""


def published_budget(published: Options) -> media_pb2.MediaOptions:
    """The checkpoint's own settings, as a message for EncoderInfo."""
    return media_pb2.MediaOptions(**vars(published))


def default_budget(
    published: Options, *, on_cpu: bool, max_pixels: Setting, max_video_pixels: Setting, max_frames: Setting
) -> media_pb2.MediaOptions:
    """The budget of requests that set none. The device's default is at most the checkpoint's own.

    It has no bound for a kind of media that the checkpoint has no settings for.

    Args:
        published: The checkpoint's own settings.
        on_cpu: Whether the encoder runs on a CPU; on a GPU the published limits are the default.
        max_pixels: Largest area of an image.
        max_video_pixels: Largest volume of a video, in pixels of all its frames.
        max_frames: Most frames of a video.
    """
    budget = media_pb2.MediaOptions()
    for name, setting in (
        ("max_pixels", max_pixels),
        ("max_video_pixels", max_video_pixels),
        ("max_frames", max_frames),
    ):
        own = getattr(published, name)
        if own is None:  # the model does not take such media
            continue
        of_device = min(own, getattr(_CPU, name)) if on_cpu else own
        setattr(budget, name, of_device if setting is None else own if setting == "published" else setting)
    return budget
