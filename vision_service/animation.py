"""Videos that are images: GIF, animated PNG, animated WebP, and JPEGs one after another.

FFmpeg reads none of the WebPs, and of the others not all; Pillow reads them as it reads the same files as images.
"""

from __future__ import annotations

import io
import itertools
import sys
from collections.abc import Iterator

from PIL import Image

from serving.errors import Reason, ServiceError, invalid
from vision_service import jpeg, png
from vision_service.clip import Clip, Collector, SampleFrames, TargetSize, VideoLimits
from vision_service.images import DAMAGE, decode_image, to_rgb
from vision_service.media import PATH, Cancelled, WorkCancelledError
from vision_service.outlines import Outline, is_animated, outline_of

JPEG_FPS = 2.0
"""Frames per second of JPEGs one after another, which have no times.

It is the rate at which Qwen3-VL samples a video, so that every frame is looked at.
"""


def is_animation(data: bytes) -> bool:
    """Whether `read_animation` reads the file."""
    return data.startswith(jpeg.SIGNATURE) or is_animated(data)


def read_animation(
    data: bytes, *, sample: SampleFrames, limits: VideoLimits, target_size: TargetSize, cancelled: Cancelled
) -> Clip:
    """Decode the sampled frames. Arguments as for `read_clip`.

    Raises:
        ServiceError: As `read_clip`.
        WorkCancelledError: `cancelled` returned True.
    """
    if data.startswith(jpeg.SIGNATURE):
        return _read_jpegs(data, sample, limits, target_size, cancelled)
    outline = outline_of(data)
    limits.check_pixels(outline.width, outline.height)
    limits.check_frames(len(outline.durations))
    seconds = sum(outline.durations)
    limits.check_seconds(seconds)
    if not outline.whole or not outline.durations:
        raise _breaks_off(len(outline.durations))
    starts = tuple(itertools.accumulate(outline.durations[:-1], initial=0.0))
    indices = sample(len(starts), len(starts) / seconds)
    limits.check_sampled(len(indices))
    collector = Collector(indices, target_size)
    try:
        for index, image in enumerate(_frames(data, outline)):
            if cancelled():
                raise WorkCancelledError
            limits.check_pixels(image.width, image.height)
            image.load()
            if index == collector.following:
                collector.keep(to_rgb(image))
            if collector.following is None:
                break
    except DAMAGE as error:
        if "truncated" in str(error).lower():
            raise _breaks_off(len(starts)) from error
        raise invalid(PATH, "is a video that is damaged or cut off", reason=Reason.VIDEO_UNREADABLE) from error
    return collector.clip(tuple(starts[index] for index in indices))


def _frames(data: bytes, outline: Outline) -> Iterator[Image.Image]:
    """The image at each of its frames."""
    if data.startswith(png.SIGNATURE):
        data = png.without_extras(data)
    with Image.open(io.BytesIO(data), formats=("GIF", "PNG", "WEBP")) as image:
        for index in range(len(outline.durations)):
            image.seek(index + outline.skipped)
            yield image


def _read_jpegs(
    data: bytes, sample: SampleFrames, limits: VideoLimits, target_size: TargetSize, cancelled: Cancelled
) -> Clip:
    places: list[tuple[int, int]] = []
    for place in jpeg.split(data):
        if cancelled():
            raise WorkCancelledError
        places.append(place)
        limits.check_frames(len(places))
    limits.check_seconds(len(places) / JPEG_FPS)
    indices = sample(len(places), JPEG_FPS)
    limits.check_sampled(len(indices))
    collector = Collector(indices, target_size)
    for index in indices:
        if cancelled():
            raise WorkCancelledError
        start, end = places[index]
        try:
            collector.keep(decode_image(data[start:end], max_pixels=sys.maxsize, check=limits.check_pixels))
        except ServiceError as error:
            raise _of_video(error, index) from error
    return collector.clip(tuple(index / JPEG_FPS for index in indices))


_VIDEO_REASONS = {
    Reason.IMAGE_TRUNCATED.name: Reason.VIDEO_TRUNCATED,
    Reason.IMAGE_ASPECT_RATIO.name: Reason.VIDEO_ASPECT_RATIO,
    Reason.IMAGE_UNREADABLE.name: Reason.VIDEO_UNREADABLE,
    Reason.IMAGE_MODE_UNSUPPORTED.name: Reason.VIDEO_UNREADABLE,
}


def _of_video(error: ServiceError, index: int) -> ServiceError:
    """The refusal of a JPEG as that of a video."""
    reason = _VIDEO_REASONS.get(error.reason)
    if reason is None:
        return error
    return invalid(PATH, f"is a video whose frame {index + 1} {error.violations[0].description}", reason=reason)


def _breaks_off(frames: int) -> ServiceError:
    return invalid(
        PATH, f"is a video that breaks off after {frames} whole frames; send all of it", reason=Reason.VIDEO_TRUNCATED
    )
