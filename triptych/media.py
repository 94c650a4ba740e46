"""Images and videos of a request, and their preprocessing options."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict, Unpack, cast, get_args

from triptych.sources import VIDEO_SUFFIXES, FileSource, name_of, read_file, read_image
from vlm.v1 import media_pb2

if TYPE_CHECKING:
    from triptych.sources import ImageSource

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


@dataclass(frozen=True, init=False, repr=False)
class Image:
    """The content of an image file.

    An option that is set here overrides the request's; if `detail` is set, none of the request's media
    options apply to this image.

    Args:
        data: The file's bytes, its path, a `data:` URL, a file object, an image of Pillow, or an array of uint8:
            [height, width], or [height, width, channels] with 1, 3 (RGB) or 4 (RGBA) channels.
        min_pixels: As in `MediaOptions`.
        max_pixels: As in `MediaOptions`.
        detail: As in `MediaOptions`.
        name: Its name in `repr`; by default the path.

    Attributes:
        data: The file's bytes; those of a PNG file if pixels were given.

    Raises:
        OSError: The file cannot be read.
        TypeError: `data` is nothing of this.
        ValueError: Pixels of another type, a URL, or `detail` is not one of the choices.
    """

    data: bytes
    min_pixels: int | None
    max_pixels: int | None
    detail: Detail | None
    name: str = field(compare=False)

    def __init__(
        self,
        data: ImageSource,
        *,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        detail: Detail | None = None,
        name: str = "",
    ) -> None:
        _check_detail(detail)
        _set(
            self,
            data=read_image(data),
            min_pixels=min_pixels,
            max_pixels=max_pixels,
            detail=detail,
            name=name or name_of(data),
        )

    @classmethod
    def open(cls, path: str | os.PathLike[str], **options: Unpack[ImageOptions]) -> Image:
        """Read a file.

        Raises:
            OSError: The file cannot be read.
            ValueError: `detail` is not one of the choices.
        """
        return cls(Path(path), **options)

    def __repr__(self) -> str:
        return _described(self)


@dataclass(frozen=True, init=False, repr=False)
class Video:
    """The content of a video file.

    An option that is set here overrides the request's; if `detail` is set, none of the request's media
    options apply to this video.

    Args:
        data: The file's bytes, its path, a `data:` URL, or a file object.
        fps: As in `MediaOptions`.
        min_frames: As in `MediaOptions`.
        max_frames: As in `MediaOptions`.
        min_video_pixels: As in `MediaOptions`.
        max_video_pixels: As in `MediaOptions`.
        detail: As in `MediaOptions`.
        name: Its name in `repr`; by default the path.

    Attributes:
        data: The file's bytes.

    Raises:
        OSError: The file cannot be read.
        TypeError: `data` is nothing of this.
        ValueError: A URL, or `detail` is not one of the choices.
    """

    data: bytes
    fps: float | None
    min_frames: int | None
    max_frames: int | None
    min_video_pixels: int | None
    max_video_pixels: int | None
    detail: Detail | None
    name: str = field(compare=False)

    def __init__(
        self,
        data: FileSource,
        *,
        fps: float | None = None,
        min_frames: int | None = None,
        max_frames: int | None = None,
        min_video_pixels: int | None = None,
        max_video_pixels: int | None = None,
        detail: Detail | None = None,
        name: str = "",
    ) -> None:
        _check_detail(detail)
        _set(
            self,
            data=read_file(data),
            fps=fps,
            min_frames=min_frames,
            max_frames=max_frames,
            min_video_pixels=min_video_pixels,
            max_video_pixels=max_video_pixels,
            detail=detail,
            name=name or name_of(data),
        )

    @classmethod
    def open(cls, path: str | os.PathLike[str], **options: Unpack[VideoOptions]) -> Video:
        """Read a file.

        Raises:
            OSError: The file cannot be read.
            ValueError: `detail` is not one of the choices.
        """
        return cls(Path(path), **options)

    def __repr__(self) -> str:
        return _described(self)


def _set(medium: Image | Video, **values: object) -> None:
    for name, value in values.items():
        object.__setattr__(medium, name, value)  # a frozen dataclass's own way


def _own_options(medium: Image | Video) -> dict[str, object]:
    own = {each.name: getattr(medium, each.name) for each in fields(medium) if each.name not in ("data", "name")}
    return {name: value for name, value in own.items() if value is not None}


def _described(medium: Image | Video) -> str:
    """A repr with the size in the place of the bytes."""
    name = [repr(medium.name)] if medium.name else []
    options = [f"{option}={value!r}" for option, value in _own_options(medium).items()]
    return f"{type(medium).__name__}({', '.join([*name, in_bytes(len(medium.data)), *options])})"


def in_bytes(size: int) -> str:
    """A number of bytes, for people."""
    if size < 1000:
        return f"{size} bytes"
    return f"{size / 1e6:.1f} MB" if size >= 100_000 else f"{size / 1e3:.1f} kB"


def medium_of(source: ImageSource) -> Image | Video:
    """The video of a file that its name says to be one, else an image. Errors as for `Image`."""
    is_video = os.path.splitext(name_of(source))[1].lower() in VIDEO_SUFFIXES  # noqa: PTH122  # a name may be no path
    return Video(source) if is_video else Image(source)  # type: ignore[arg-type]  # only files have names


def media_to_wire(medium: Image | Video) -> media_pb2.Media:
    """Convert an image or a video to a message; without own options the message has none."""
    given = _own_options(medium)
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
