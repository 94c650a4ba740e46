"""The sampled frames of a video, whatever file they come from, and the limits of a video."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from serving.errors import Reason, invalid, too_large
from vision_service.media import PATH

TargetSize = Callable[[int, int, int], tuple[int, int]]
"""Function from frames, height and width of a video to the height and width of its resized frames."""

SampleFrames = Callable[[int, float], list[int]]
"""Function from the number of frames and the fps of a video to the sampled indices, ascending, at least one."""


@dataclass(frozen=True)
class VideoLimits:
    """Limits of a video.

    Attributes:
        seconds: Longest duration.
        frames: Most frames, sampled or not: each must be decoded.
        sampled: Most sampled frames.
        pixels: Most pixels of a frame.
    """

    seconds: float
    frames: int
    sampled: int
    pixels: int

    def check_seconds(self, seconds: float) -> None:
        """Raise VIDEO_TOO_LONG over the limit."""
        if seconds > self.seconds:
            raise too_large(
                PATH,
                f"is a video of {seconds:.1f} seconds, over the limit of {self.seconds:g} (max_video_seconds)",
                reason=Reason.VIDEO_TOO_LONG,
                limit=int(self.seconds),
            )

    def check_frames(self, frames: int) -> None:
        """Raise VIDEO_TOO_MANY_FRAMES over the limit."""
        if frames > self.frames:
            raise too_large(
                PATH,
                f"is a video of {frames} frames or more, over the limit of {self.frames} (max_video_frames)",
                reason=Reason.VIDEO_TOO_MANY_FRAMES,
                limit=self.frames,
            )

    def check_sampled(self, frames: int) -> None:
        """Raise VIDEO_TOO_MANY_FRAMES over the limit of sampled frames."""
        if frames > self.sampled:
            raise too_large(
                PATH,
                f"is a video of which {frames} frames would be looked at, over the limit of "
                f"{self.sampled} (max_sampled_frames); lower fps or max_frames",
                reason=Reason.VIDEO_TOO_MANY_FRAMES,
                limit=self.sampled,
            )

    def check_pixels(self, width: int, height: int) -> None:
        """Raise VIDEO_TOO_LARGE over the limit, VIDEO_UNREADABLE without a pixel."""
        if width < 1 or height < 1:
            raise invalid(PATH, f"is a video of {width} x {height} pixels", reason=Reason.VIDEO_UNREADABLE)
        if width * height > self.pixels:
            raise too_large(
                PATH,
                f"is a video of {width} x {height} pixels, over the limit of {self.pixels} a frame (max_video_pixels)",
                reason=Reason.VIDEO_TOO_LARGE,
                limit=self.pixels,
            )


@dataclass(frozen=True)
class Clip:
    """The sampled frames of a video.

    Attributes:
        frames: [frames, height, width, 3], uint8, resized.
        times: Time of each in seconds; the first frame of the video is at 0.
        size_given: Width and height of its frames, upright, before resizing.
    """

    frames: NDArray[np.uint8]
    times: tuple[float, ...]
    size_given: tuple[int, int]


class Collector:
    """Keeps the sampled frames of a video that is decoded from its beginning.

    Frames are resized with Pillow's bicubic filter like images, all to the size that follows from the first.

    Args:
        indices: The sampled indices, ascending.
        target_size: Returns the size of the resized frames; may raise.
    """

    def __init__(self, indices: Sequence[int], target_size: TargetSize) -> None:
        self._indices = indices
        self._target_size = target_size
        self._size: tuple[int, int] | None = None
        self._size_given = (0, 0)
        self._kept: list[NDArray[np.uint8]] = []

    @property
    def following(self) -> int | None:
        """Index of the next frame to keep; None if all are there."""
        return self._indices[len(self._kept)] if len(self._kept) < len(self._indices) else None

    def keep(self, picture: Image.Image) -> None:
        """Keep the frame `following`, upright and in RGB."""
        if self._size is None:
            height, width = self._target_size(len(self._indices), picture.height, picture.width)
            self._size = width, height
            self._size_given = picture.size
        self._kept.append(np.asarray(picture.resize(self._size, Image.Resampling.BICUBIC)))

    def clip(self, times: tuple[float, ...]) -> Clip:
        """The kept frames with their times in seconds."""
        return Clip(np.stack(self._kept), times, self._size_given)
