"""Decodes sampled frames of video files to RGB, or raises an error with the cause."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import NoReturn

import av
import numpy as np
from av.stream import Disposition
from av.video.stream import VideoStream
from numpy.typing import NDArray
from PIL import Image

from serving.errors import Reason, ServiceError, invalid, too_large
from vision_service.media import PATH, Cancelled, WorkCancelledError

FORMATS = ("mov", "matroska", "avi")
"""FFmpeg's names of the supported containers: MP4 and MOV, MKV and WebM, AVI.

Others are refused. Some of them (HLS, DASH, concat) refer to files and addresses that FFmpeg would read.
"""

DEFAULT_FPS = 24.0
"""Frames per second if the file has none, as in transformers."""

TargetSize = Callable[[int, int, int], tuple[int, int]]
"""Function from frames, height and width of a video to the height and width of its resized frames."""

SampleFrames = Callable[[int, float], list[int]]
"""Function from the number of frames and the fps of a video to the sampled indices, ascending, at least one."""

_ROTATIONS = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}

# A video with fewer frames than in its header is either complete (an edit list hides some) or truncated. It counts as
# truncated if its last frame is this much before the end in the header, in seconds and as a share.
_MISSING_SECONDS = 1.0
_MISSING_SHARE = 0.1


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


@dataclass(frozen=True)
class Clip:
    """The sampled frames of a video.

    Attributes:
        frames: [frames, height, width, 3], uint8, resized.
        indices: Index of each in the video.
        fps: The video's frames per second.
        size_given: Width and height of its frames, upright, before resizing.
    """

    frames: NDArray[np.uint8]
    indices: tuple[int, ...]
    fps: float
    size_given: tuple[int, int]


@dataclass(frozen=True)
class _Header:
    """The values in the container's header; None if missing."""

    frames: int | None
    fps: float
    seconds: float | None


class _FrameCountError(Exception):
    """The file has another number of frames than its header states."""

    def __init__(self, frames: int) -> None:
        super().__init__(frames)
        self.frames = frames


def read_clip(
    data: bytes, *, sample: SampleFrames, limits: VideoLimits, target_size: TargetSize, cancelled: Cancelled
) -> Clip:
    """Decode a video and keep the sampled frames, upright and resized.

    The number of frames is taken from the container, as in transformers' PyAV reader; if it is missing or wrong, by
    decoding. Frames are resized with Pillow's bicubic filter like images; transformers' video processor uses
    torchvision's, which differs in the rounding of single pixel values.

    Args:
        data: The file's bytes.
        sample: Selects the frames.
        limits: Limits of a video.
        target_size: Returns the size of the resized frames; may raise.
        cancelled: Called at each frame.

    Raises:
        ServiceError: INVALID_ARGUMENT with reason VIDEO_UNREADABLE, VIDEO_TRUNCATED, or VIDEO_WITHOUT_PICTURES;
            RESOURCE_EXHAUSTED with reason VIDEO_TOO_LONG, VIDEO_TOO_LARGE or VIDEO_TOO_MANY_FRAMES; errors of
            `target_size`.
        WorkCancelledError: `cancelled` returned True.
    """
    reader = _Reader(data, limits, cancelled)
    try:
        header = reader.header()
        total = header.frames if header.frames is not None else reader.count(header)
        try:
            return reader.read(total, header, sample, target_size)
        except _FrameCountError as error:
            return reader.read(error.frames, header, sample, target_size)
    except _FrameCountError as error:  # a second time: the file decodes differently each time
        raise invalid(PATH, "is a video that cannot be decoded to its end", reason=Reason.VIDEO_UNREADABLE) from error
    except av.error.FFmpegError as error:
        raise invalid(PATH, "is a video that is damaged or cut off", reason=Reason.VIDEO_UNREADABLE) from error


class _Reader:
    """Reads one file, possibly several times."""

    def __init__(self, data: bytes, limits: VideoLimits, cancelled: Cancelled) -> None:
        self._data = data
        self._limits = limits
        self._cancelled = cancelled

    def _open(self) -> av.container.InputContainer:
        try:
            return av.open(
                io.BytesIO(self._data),
                "r",
                options={"format_whitelist": ",".join(FORMATS), "max_pixels": str(self._limits.pixels)},
                io_open=_refuse_other_files,
            )
        except (av.error.FFmpegError, ValueError) as error:
            raise invalid(
                PATH, "is no video that can be read; use MP4, MOV, WebM, MKV or AVI", reason=Reason.VIDEO_UNREADABLE
            ) from error

    def _stream(self, container: av.container.InputContainer) -> VideoStream:
        if not container.streams:
            raise invalid(PATH, "is a video that breaks off before it begins", reason=Reason.VIDEO_UNREADABLE)
        films = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
        if not films:
            raise invalid(PATH, "holds no moving pictures, only sound or text", reason=Reason.VIDEO_WITHOUT_PICTURES)
        stream = films[0]
        if stream.codec_context is None:
            raise invalid(PATH, "is a video in a codec that is not known", reason=Reason.VIDEO_UNREADABLE)
        return stream

    def header(self) -> _Header:
        """Read the container's header, and check it against the limits."""
        with self._open() as container:
            stream = self._stream(container)
            self._check_pixels(stream.width, stream.height)
            seconds = None
            if stream.duration is not None and stream.time_base is not None:
                seconds = float(stream.duration * stream.time_base)
            elif container.duration is not None and len(container.streams) == 1:
                seconds = container.duration / av.time_base  # of all streams: this one's only if there is no other
            header = _Header(
                frames=stream.frames or None, fps=float(stream.average_rate or DEFAULT_FPS), seconds=seconds
            )
        if header.seconds is not None:
            self._check_seconds(header.seconds)
        if header.frames is not None:
            self._check_frames(header.frames)
            self._check_seconds(header.frames / header.fps)
        return header

    def count(self, header: _Header) -> int:
        """Count the frames by decoding them."""
        count = sum(1 for _ in self._decode(header.fps))
        if count == 0:
            raise _without_frames()
        return count

    def read(self, total: int, header: _Header, sample: SampleFrames, target_size: TargetSize) -> Clip:
        """Decode and keep the sampled frames.

        Raises:
            _FrameCountError: There are fewer frames than `total`, although the video is complete.
        """
        indices = sample(total, header.fps)
        if len(indices) > self._limits.sampled:
            raise too_large(
                PATH,
                f"is a video of which {len(indices)} frames would be looked at, over the limit of "
                f"{self._limits.sampled} (max_sampled_frames); lower fps or max_frames",
                reason=Reason.VIDEO_TOO_MANY_FRAMES,
                limit=self._limits.sampled,
            )
        wanted = iter(indices)
        following: int | None = next(wanted)
        kept: list[NDArray[np.uint8]] = []
        size: tuple[int, int] | None = None
        size_given = (0, 0)
        count, seconds = 0, 0.0
        with contextlib.closing(self._decode(header.fps)) as frames:
            for frame, seconds in frames:  # noqa: B007  # the last values are used after the loop
                count += 1
                if count - 1 == following:
                    picture = _upright(frame)
                    if size is None:
                        size = target_size(len(indices), picture.height, picture.width)
                        size_given = picture.size
                    kept.append(np.asarray(picture.resize((size[1], size[0]), Image.Resampling.BICUBIC)))
                    following = next(wanted, None)
                if following is None:
                    break
        if following is not None:
            self._check_whole(count, seconds, header)
            raise _FrameCountError(count)
        return Clip(np.stack(kept), tuple(indices), header.fps, size_given)

    def _decode(self, fps: float) -> Generator[tuple[av.VideoFrame, float]]:
        """Yield every frame in order with its time after the first, checked against the limits."""
        with self._open() as container:
            stream = self._stream(container)
            stream.codec_context.options = {"max_pixels": str(self._limits.pixels)}
            stream.thread_type = "AUTO"
            first: float | None = None
            for count, frame in enumerate(container.decode(stream), start=1):
                if self._cancelled():
                    raise WorkCancelledError
                self._check_frames(count)
                self._check_pixels(frame.width, frame.height)
                time = frame.time if frame.pts is not None else (count - 1) / fps
                first = time if first is None else first
                self._check_seconds(time - first)
                yield frame, time - first

    def _check_whole(self, frames: int, seconds: float, header: _Header) -> None:
        """Raise an error if there are fewer frames than in the header because the file is truncated."""
        if frames == 0:
            raise _without_frames()
        if header.seconds is None:
            return
        missing = header.seconds - (seconds + 1 / header.fps)
        if missing > max(_MISSING_SECONDS, _MISSING_SHARE * header.seconds):
            raise invalid(
                PATH,
                f"is a video that breaks off {seconds:.1f} seconds into {header.seconds:.1f}; send all of it",
                reason=Reason.VIDEO_TRUNCATED,
            )

    def _check_seconds(self, seconds: float) -> None:
        if seconds > self._limits.seconds:
            raise too_large(
                PATH,
                f"is a video of {seconds:.1f} seconds, over the limit of {self._limits.seconds:g} (max_video_seconds)",
                reason=Reason.VIDEO_TOO_LONG,
                limit=int(self._limits.seconds),
            )

    def _check_frames(self, frames: int) -> None:
        if frames > self._limits.frames:
            raise too_large(
                PATH,
                f"is a video of {frames} frames or more, over the limit of {self._limits.frames} (max_video_frames)",
                reason=Reason.VIDEO_TOO_MANY_FRAMES,
                limit=self._limits.frames,
            )

    def _check_pixels(self, width: int, height: int) -> None:
        if width < 1 or height < 1:
            raise invalid(PATH, f"is a video of {width} x {height} pixels", reason=Reason.VIDEO_UNREADABLE)
        if width * height > self._limits.pixels:
            raise too_large(
                PATH,
                f"is a video of {width} x {height} pixels, over the limit of {self._limits.pixels} a frame "
                "(max_video_pixels)",
                reason=Reason.VIDEO_TOO_LARGE,
                limit=self._limits.pixels,
            )


def _refuse_other_files(url: str, flags: int, options: dict[str, str]) -> NoReturn:
    """Raise an error if a video refers to another file or address."""
    raise PermissionError(f"a video asked for {url!r}")


def _without_frames() -> ServiceError:
    return invalid(PATH, "holds no pictures that can be decoded", reason=Reason.VIDEO_UNREADABLE)


def _upright(frame: av.VideoFrame) -> Image.Image:
    """The frame in RGB, rotated by the file's orientation."""
    picture = Image.fromarray(frame.to_ndarray(format="rgb24"))
    turn = _ROTATIONS.get(round(frame.rotation) % 360)
    return picture if turn is None else picture.transpose(turn)
