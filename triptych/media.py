"""Images and videos of a request, and their preprocessing options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, fields
from pathlib import Path
from typing import Literal, TypedDict, Unpack, cast, get_args

from vlm.v1 import media_pb2

Detail = Literal["low", "high", "original"]
DETAILS: tuple[Detail, ...] = get_args(Detail)


class ImageOptions(TypedDict, total=False):
    """Preprocessing options of one image; as in `MediaOptions`."""

    min_pixels: int
    max_pixels: int
    detail: Detail


class VideoOptions(TypedDict, total=False):
    """Preprocessing options of one video; as in `MediaOptions`."""

    fps: float
    min_frames: int
    max_frames: int
    min_video_pixels: int
    max_video_pixels: int
    detail: Detail


class MediaOptions(TypedDict, total=False):
    """Preprocessing options of all media of a request. Options that are not set take the budget of `detail`.

    Attributes:
        min_pixels: Least area of an image after resizing, in pixels (height x width).
        max_pixels: Greatest area of an image after resizing, in pixels.
        fps: Frames sampled from a second of video; greater than 0, at most 60.
        min_frames: Fewest frames sampled from a video, if it has that many.
        max_frames: Most frames sampled from a video.
        min_video_pixels: Least volume of a video after resizing, in pixels (sampled frames x height x width).
        max_video_pixels: Greatest volume of a video after resizing, in pixels.
        detail: `low` is a small budget, `high` the server's default, `original` the checkpoint's own limits.
    """

    min_pixels: int
    max_pixels: int
    fps: float
    min_frames: int
    max_frames: int
    min_video_pixels: int
    max_video_pixels: int
    detail: Detail


@dataclass(frozen=True)
class Image:
    """The content of an image file.

    An option that is set here overrides the request's; if `detail` is set, none of the request's media
    options apply to this image.

    Attributes:
        data: The file's bytes.
        min_pixels: As in `MediaOptions`.
        max_pixels: As in `MediaOptions`.
        detail: As in `MediaOptions`.

    Raises:
        ValueError: `detail` is not one of the choices.
    """

    data: bytes
    _: KW_ONLY
    min_pixels: int | None = None
    max_pixels: int | None = None
    detail: Detail | None = None

    def __post_init__(self) -> None:
        _check_detail(self.detail)

    @classmethod
    def open(cls, path: str | Path, **options: Unpack[ImageOptions]) -> Image:
        """Read a file.

        Raises:
            OSError: The file cannot be read.
            ValueError: `detail` is not one of the choices.
        """
        return cls(Path(path).read_bytes(), **options)


@dataclass(frozen=True)
class Video:
    """The content of a video file.

    An option that is set here overrides the request's; if `detail` is set, none of the request's media
    options apply to this video.

    Attributes:
        data: The file's bytes.
        fps: As in `MediaOptions`.
        min_frames: As in `MediaOptions`.
        max_frames: As in `MediaOptions`.
        min_video_pixels: As in `MediaOptions`.
        max_video_pixels: As in `MediaOptions`.
        detail: As in `MediaOptions`.

    Raises:
        ValueError: `detail` is not one of the choices.
    """

    data: bytes
    _: KW_ONLY
    fps: float | None = None
    min_frames: int | None = None
    max_frames: int | None = None
    min_video_pixels: int | None = None
    max_video_pixels: int | None = None
    detail: Detail | None = None

    def __post_init__(self) -> None:
        _check_detail(self.detail)

    @classmethod
    def open(cls, path: str | Path, **options: Unpack[VideoOptions]) -> Video:
        """Read a file.

        Raises:
            OSError: The file cannot be read.
            ValueError: `detail` is not one of the choices.
        """
        return cls(Path(path).read_bytes(), **options)


def media_to_wire(medium: Image | Video) -> media_pb2.Media:
    """Convert an image or a video to a message; without own options the message has none."""
    own = {field.name: getattr(medium, field.name) for field in fields(medium) if field.name != "data"}
    given = {name: value for name, value in own.items() if value is not None}
    return media_pb2.Media(data=medium.data, options=options_to_wire(given) if given else None)


def options_to_wire(options: Mapping[str, object]) -> media_pb2.MediaOptions:
    """Convert the options of `MediaOptions` to a message.

    Args:
        options: Options by name; other names are ignored, and None means not set.

    Raises:
        ValueError: `detail` is not one of the choices, or a number is negative or over 2^32 - 1.
    """
    given = {name: options[name] for name in MediaOptions.__annotations__ if options.get(name) is not None}
    detail = cast("Detail | None", given.pop("detail", None))
    _check_detail(detail)
    wire = media_pb2.MediaOptions()
    for name, value in given.items():
        try:
            setattr(wire, name, value)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name} is {value!r}: {error}") from None
    if detail is not None:
        wire.detail = media_pb2.Detail.Value(f"DETAIL_{detail.upper()}")
    return wire


def _check_detail(detail: Detail | None) -> None:
    if detail is not None and detail not in DETAILS:
        raise ValueError(f"detail is {detail!r} and must be one of {', '.join(DETAILS)}")
