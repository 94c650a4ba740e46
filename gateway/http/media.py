"""Media in the JSON: the options of a request, and the layouts of its media."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gateway.http.schema import CompletionRequest, MediaIoKwargs, MmProcessorKwargs, Size, VideoIoKwargs
from serving.media import IMAGE_FIELDS, VIDEO_FIELDS
from vlm.v1 import media_pb2

_KINDS = {media_pb2.MEDIA_KIND_IMAGE: "image", media_pb2.MEDIA_KIND_VIDEO: "video"}


@dataclass(frozen=True)
class Option:
    """A field of MediaOptions, as the client asks for it.

    Attributes:
        value: Its value.
        name: Path of the field in the JSON that it comes from.
    """

    value: float
    name: str


def options_of(request: CompletionRequest) -> dict[str, Option]:
    """The fields of MediaOptions that a request sets, by their names on the wire.

    A field of `mm_processor_kwargs` takes the place of what its `size` and `media_io_kwargs` say.
    """
    processor = request.mm_processor_kwargs or MmProcessorKwargs()
    size = processor.size or Size()
    video = (request.media_io_kwargs or MediaIoKwargs()).video or VideoIoKwargs()
    # Without a rate and another bound, `num_frames` is how many frames, and not only how many at most.
    exact = processor.fps is None and video.fps is None and processor.max_frames is None
    sources: list[tuple[str, float | None, str]] = [
        *(
            (field, getattr(processor, field), f"mm_processor_kwargs.{field}")
            for field in (*IMAGE_FIELDS, *VIDEO_FIELDS)
        ),
        ("min_pixels", size.shortest_edge, "mm_processor_kwargs.size.shortest_edge"),
        ("max_pixels", size.longest_edge, "mm_processor_kwargs.size.longest_edge"),
        ("min_video_pixels", size.shortest_edge, "mm_processor_kwargs.size.shortest_edge"),
        ("max_video_pixels", size.longest_edge, "mm_processor_kwargs.size.longest_edge"),
        ("fps", video.fps, "media_io_kwargs.video.fps"),
        ("max_frames", video.num_frames, "media_io_kwargs.video.num_frames"),
        ("min_frames", video.num_frames if exact else None, "media_io_kwargs.video.num_frames"),
    ]
    options: dict[str, Option] = {}
    for field, value, name in sources:
        if value is not None:
            options.setdefault(field, Option(value, name))
    return options


def described(layout: media_pb2.MediaLayout) -> dict[str, Any]:
    """What a medium became, with the names of MediaLayout. Sizes are in pixels, times in seconds."""
    medium: dict[str, Any] = {
        "kind": _KINDS.get(layout.kind),
        "size_given": _size(layout.size_given),
        "size_used": _size(layout.size_used),
        "tokens": layout.token_count,
    }
    if layout.kind == media_pb2.MEDIA_KIND_VIDEO:
        medium["frames"] = len(layout.frame_times)
        medium["frame_times"] = [round(time, 3) for time in layout.frame_times]
    return medium


def _size(size: media_pb2.Size) -> dict[str, int]:
    return {"width": size.width, "height": size.height}
