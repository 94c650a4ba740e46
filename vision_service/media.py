"""The values that pass between the stages: preprocessing options and prepared media."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Kind = Literal["image", "video"]

Cancelled = Callable[[], bool]
"""Called repeatedly by long work; True if its result is no longer needed."""

Advance = Callable[[float], None]
"""Called repeatedly by long work with the finished share, from 0 to 1."""

PATH = "data"
"""Path of the media bytes in the request, for errors."""


class WorkCancelledError(Exception):
    """Work was cancelled because its result is no longer needed."""


class Grid(NamedTuple):
    """The extent of a medium in patches, before spatial merging: frames (in temporal patches), rows, columns."""

    t: int
    h: int
    w: int

    @property
    def patches(self) -> int:
        """Number of patches."""
        return self.t * self.h * self.w


@dataclass(frozen=True)
class Options:
    """Preprocessing options. None takes the checkpoint's own setting.

    Attributes:
        min_pixels: Least area of a resized image, in pixels.
        max_pixels: Largest area of a resized image, in pixels.
        fps: Frames sampled from a second of video.
        min_frames: Fewest frames sampled from a video, if it has that many.
        max_frames: Most frames sampled from a video.
        min_video_pixels: Least volume of a resized video, in pixels (frames x height x width).
        max_video_pixels: Largest volume of a resized video, in pixels.
    """

    min_pixels: int | None = None
    max_pixels: int | None = None
    fps: float | None = None
    min_frames: int | None = None
    max_frames: int | None = None
    min_video_pixels: int | None = None
    max_video_pixels: int | None = None

    def that_matter(self, kind: Kind) -> Options:
        """The options that affect media of this kind: equal ones give equal pixels."""
        if kind == "image":
            return Options(min_pixels=self.min_pixels, max_pixels=self.max_pixels)
        return replace(self, min_pixels=None, max_pixels=None)


class Range(NamedTuple):
    """A least and a greatest value."""

    low: int
    high: int

    def override(self, low: int | None, high: int | None) -> Range:
        """Replace the bounds that are not None.

        A single bound also moves the other one if they conflict: a request for at most 50,000 pixels must not get
        65,536 because that is the checkpoint's least.
        """
        if low is None and high is None:
            return self
        if low is None:
            return Range(min(self.low, int(high or 0)), int(high or 0))
        if high is None:
            return Range(low, max(self.high, low))
        return Range(low, high)


@dataclass(frozen=True)
class PreparedMedium:
    """An image or a video, ready to be encoded.

    Attributes:
        kind: Image or video.
        grid: Its extent in patches.
        patches: [grid.patches, channels, temporal patch, patch, patch], uint8, which takes a quarter of the memory
            of float32. Patches are in the order in which the encoder merges them: by blocks of merge x merge.
        levels: [channels, 256], float32: the encoder's input for each pixel value.
        size_given: Width and height of the picture or of the video's frames, upright, before resizing.
        size_used: The same after resizing, without padding.
        timestamps: Of a video, the time of each temporal patch in seconds; empty for an image.
        frame_times: Of a video, the time of each sampled frame in seconds; empty for an image.
    """

    kind: Kind
    grid: Grid
    patches: NDArray[np.uint8]
    levels: NDArray[np.float32]
    size_given: tuple[int, int] = (0, 0)
    size_used: tuple[int, int] = (0, 0)
    timestamps: tuple[float, ...] = ()
    frame_times: tuple[float, ...] = ()

    def frames(self, first: int, count: int) -> PreparedMedium:
        """Some of its frames, or all, as a medium; frames are independent in the encoder. Shares the patches.

        Args:
            first: The first frame, in temporal patches.
            count: Number of frames.
        """
        if count == self.grid.t:
            return self
        grid = self.grid._replace(t=count)
        size = grid.h * grid.w
        return replace(
            self,
            grid=grid,
            patches=self.patches[first * size : (first + count) * size],
            timestamps=self.timestamps[first : first + count],
        )

    def pixel_values(self) -> NDArray[np.float32]:
        """The encoder's input, [grid.patches, channels x temporal patch x patch x patch]."""
        out = np.empty(self.patches.shape, np.float32)
        for channel, levels in enumerate(self.levels):
            np.take(levels, self.patches[:, channel], out=out[:, channel], mode="clip")
        return out.reshape(len(out), -1)
