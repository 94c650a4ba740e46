"""Decodes sampled frames of video files to RGB, or raises an error with the cause.

Containers are read by FFmpeg; animated images and JPEG frames by `animation`.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Generator
from dataclasses import dataclass
from typing import NoReturn

import av
from av.stream import Disposition
from av.video.stream import VideoStream
from PIL import Image

from serving.errors import Reason, ServiceError, invalid
from vision_service.animation import is_animation, read_animation
from vision_service.clip import Clip, Collector, SampleFrames, TargetSize, VideoLimits
from vision_service.kinds import kind_of
from vision_service.media import PATH, Cancelled, WorkCancelledError

FORMATS = ("mov", "matroska", "avi")
"""FFmpeg's names of the supported containers: MP4 and MOV, MKV and WebM, AVI.

Others are refused. Some of them (HLS, DASH, concat) refer to files and addresses that FFmpeg would read.
"""

DEFAULT_FPS = 24.0
"""Frames per second if neither the header nor the times of the frames tell, as in transformers."""

_ROTATIONS = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}

# A video with fewer frames than in its header is either complete (an edit list hides some) or truncated. It counts as
# truncated if its last frame is this much before the end in the header, in seconds and as a share.
_MISSING_SECONDS = 1.0
_MISSING_SHARE = 0.1

# The header's rate may differ from another by this share.
_RATE_TOLERANCE = 0.1


@dataclass(frozen=True)
class _Header:
    """The values in the container's header, and what the times of its packets say; None if missing.

    Attributes:
        frames: Number of frames.
        fps: Frames per second.
        seconds: Duration.
        span: Seconds from the first frame to the last, by the packets.
    """

    frames: int | None
    fps: float | None
    seconds: float | None
    span: float | None

    def rate(self, total: int) -> tuple[float, bool]:
        """Frames per second, and whether it comes from the times of the frames.

        Screen and browser recordings are written while frames come at any time: their header has no rate, 1000 (the
        unit of their times), or one that fits neither duration nor times. If the header's rate fits one of the two, it
        is used, as in transformers.

        Args:
            total: Number of frames.
        """
        if self.span and total > 1:
            measured = (total - 1) / self.span
            stated = total / self.seconds if self.seconds else None
            if self.fps is None or not any(_is_near(self.fps, rate) for rate in (measured, stated) if rate):
                return measured, True
        return self.fps or DEFAULT_FPS, False


def _is_near(told: float, other: float) -> bool:
    return abs(told / other - 1) <= _RATE_TOLERANCE


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
    decoding. So is the frame rate, from which the times of the frames follow; if it does not fit the times in the file,
    those are used. Frames are resized with Pillow's bicubic filter like images; transformers' video processor uses
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
    if is_animation(data):
        return read_animation(data, sample=sample, limits=limits, target_size=target_size, cancelled=cancelled)
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
            kind = kind_of(self._data)
            description = (
                "is no video that can be read; use MP4, MOV, WebM, MKV or AVI"
                if kind is None
                else kind.refusal("video")
            )
            raise invalid(PATH, description, reason=Reason.VIDEO_UNREADABLE) from error

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
            self._limits.check_pixels(stream.width, stream.height)
            seconds = None
            if stream.duration is not None and stream.time_base is not None:
                seconds = float(stream.duration * stream.time_base)
            elif container.duration is not None and len(container.streams) == 1:
                seconds = container.duration / av.time_base  # of all streams: this one's only if there is no other
            header = _Header(
                frames=stream.frames or None,
                fps=None if stream.average_rate is None else float(stream.average_rate),
                seconds=seconds,
                span=self._span(container, stream),
            )
        if header.seconds is not None:
            self._limits.check_seconds(header.seconds)
        if header.frames is not None:
            self._limits.check_frames(header.frames)
            self._limits.check_seconds(header.frames / header.rate(header.frames)[0])
        return header

    def _span(self, container: av.container.InputContainer, stream: VideoStream) -> float | None:
        """Seconds from the first frame to the last, by the times of the packets; nothing is decoded."""
        if stream.time_base is None:
            return None
        times: list[int] = []
        with contextlib.suppress(av.error.FFmpegError):  # decoding meets the same damage, and says so
            for packet in container.demux(stream):
                if self._cancelled():
                    raise WorkCancelledError
                time = packet.dts if packet.pts is None else packet.pts
                if time is not None:
                    times.append(time)
                if len(times) > self._limits.frames:
                    break
        return float((max(times) - min(times)) * stream.time_base) if times else None

    def count(self, header: _Header) -> int:
        """Count the frames by decoding them."""
        count = sum(1 for _ in self._decode(header.rate(1)[0]))
        if count == 0:
            raise _without_frames()
        return count

    def read(self, total: int, header: _Header, sample: SampleFrames, target_size: TargetSize) -> Clip:
        """Decode and keep the sampled frames.

        Raises:
            _FrameCountError: There are fewer frames than `total`, although the video is complete.
        """
        fps, measured = header.rate(total)
        indices = sample(total, fps)
        self._limits.check_sampled(len(indices))
        collector = Collector(indices, target_size)
        times: list[float] = []
        count, seconds = 0, 0.0
        with contextlib.closing(self._decode(fps)) as frames:
            for frame, seconds in frames:  # the last values are used after the loop
                count += 1
                if count - 1 == collector.following:
                    collector.keep(_upright(frame))
                    times.append(max(seconds, *times[-1:], 0.0) if measured else (count - 1) / fps)
                if collector.following is None:
                    break
        if collector.following is not None:
            self._check_whole(count, seconds, header.seconds, 1 / fps)
            raise _FrameCountError(count)
        return collector.clip(tuple(times))

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
                self._limits.check_frames(count)
                self._limits.check_pixels(frame.width, frame.height)
                time = frame.time if frame.pts is not None else (count - 1) / fps
                first = time if first is None else first
                self._limits.check_seconds(time - first)
                yield frame, time - first

    def _check_whole(self, frames: int, seconds: float, announced: float | None, frame: float) -> None:
        """Raise an error if there are fewer frames than in the header because the file is truncated.

        Args:
            frames: Decoded frames.
            seconds: Time of the last.
            announced: Duration in the header, in seconds.
            frame: Duration of a frame in seconds.
        """
        if frames == 0:
            raise _without_frames()
        if announced is None:
            return
        missing = announced - (seconds + frame)
        if missing > max(_MISSING_SECONDS, _MISSING_SHARE * announced):
            raise invalid(
                PATH,
                f"is a video that breaks off {seconds:.1f} seconds into {announced:.1f}; send all of it",
                reason=Reason.VIDEO_TRUNCATED,
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
