"""Names, limits and budgets of media, common to all services."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection

from serving.errors import invalid
from vlm.v1 import media_pb2

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
MAX_PIXELS = 1 << 31
"""Highest bound of pixels that a request may set."""
MAX_FRAMES = 4096
"""Most frames that can be sampled from a video."""
MAX_FPS = 60.0
"""Most frames that can be sampled from a second of video."""

IMAGE_FIELDS = ("min_pixels", "max_pixels")
"""Fields of MediaOptions that bound a picture."""

VIDEO_FIELDS = ("fps", "min_frames", "max_frames", "min_video_pixels", "max_video_pixels")
"""Fields of MediaOptions that bound a video."""

BUDGET_FIELDS = ("max_pixels", "max_video_pixels", "max_frames")
"""Fields that the budget sets if a request does not."""

LOW = media_pb2.MediaOptions(max_pixels=512 * 512, max_video_pixels=1 << 19, max_frames=16)
"""Pixels of DETAIL_LOW, unless the default budget is smaller."""


def not_taken(takes: Collection[str]) -> str:
    """Description of a medium in a request to a model that does not take its kind.

    Args:
        takes: The kinds that it takes: "image", "video", both or none.
    """
    kinds = [f"{kind}s" for kind in ("image", "video") if kind in takes]
    return f"cannot be sent to this model, which takes {' and '.join(['text', *kinds]) if kinds else 'text only'}"


_PAIRS = (("min_pixels", "max_pixels"), ("min_frames", "max_frames"), ("min_video_pixels", "max_video_pixels"))


def media_digest(data: bytes) -> str:
    """The name of a medium by its content: `sha256:` and the hexadecimal digest of the file."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def is_digest(text: str) -> bool:
    """Whether `text` has the form of `media_digest`."""
    return _DIGEST.fullmatch(text) is not None


def check_options(options: media_pb2.MediaOptions, path: str) -> None:
    """Check preprocessing options of media.

    Args:
        options: The message.
        path: Path of the options in the request, for errors.

    Raises:
        ServiceError: INVALID_ARGUMENT that names the field and its range.
    """
    sent = {descriptor.name: value for descriptor, value in options.ListFields()}
    for names, highest in (
        (("min_pixels", "max_pixels", "min_video_pixels", "max_video_pixels"), MAX_PIXELS),
        (("min_frames", "max_frames"), MAX_FRAMES),
    ):
        for name in names:
            if not 1 <= sent.get(name, 1) <= highest:
                raise invalid(f"{path}.{name}", f"is {sent[name]} and must be from 1 to {highest}")
    if not 0 < sent.get("fps", 1) <= MAX_FPS:  # also refuses NaN
        raise invalid(f"{path}.fps", f"is {options.fps:g} and must be greater than 0 and at most {MAX_FPS:g}")
    if options.detail not in media_pb2.Detail.values():
        raise invalid(f"{path}.detail", f"is {options.detail} and must be one of {', '.join(media_pb2.Detail.keys())}")
    for low, high in _PAIRS:
        if low in sent and high in sent and sent[low] > sent[high]:
            raise invalid(f"{path}.{high}", f"is {sent[high]}, less than {low}, which is {sent[low]}")


def merge_options(base: media_pb2.MediaOptions, over: media_pb2.MediaOptions) -> media_pb2.MediaOptions:
    """`base`, with the fields that `over` sets replaced.

    A bound set only in `over` also moves the opposite bound of `base` if they conflict: a request for at least two
    million pixels is not refused because the default budget is one million.
    """
    merged = media_pb2.MediaOptions()
    merged.MergeFrom(base)
    merged.MergeFrom(over)
    for low, high in _PAIRS:
        if merged.HasField(low) and merged.HasField(high) and getattr(merged, low) > getattr(merged, high):  # type: ignore[arg-type]
            given, moved = (low, high) if over.HasField(low) else (high, low)  # type: ignore[arg-type]
            setattr(merged, moved, getattr(merged, given))
    return merged


def requested_options(request: media_pb2.MediaOptions, own: media_pb2.MediaOptions) -> media_pb2.MediaOptions:
    """The requested options of one medium.

    Args:
        request: Options of the whole request.
        own: The medium's own options. If they set `detail`, the request's do not apply.
    """
    return own if own.detail else merge_options(request, own)


def relevant_options(kind: media_pb2.MediaKind.ValueType, options: media_pb2.MediaOptions) -> media_pb2.MediaOptions:
    """The options that affect media of this kind, so that equal pixels have equal options."""
    fields = IMAGE_FIELDS if kind == media_pb2.MEDIA_KIND_IMAGE else VIDEO_FIELDS
    kept = media_pb2.MediaOptions(detail=options.detail)
    for field in fields:
        if options.HasField(field):  # type: ignore[arg-type]
            setattr(kept, field, getattr(options, field))
    return kept


def resolve_options(
    kind: media_pb2.MediaKind.ValueType,
    requested: media_pb2.MediaOptions,
    *,
    default: media_pb2.MediaOptions,
    published: media_pb2.MediaOptions,
) -> media_pb2.MediaOptions:
    """The options with which a medium is encoded: the budget in numbers, `detail` cleared.

    Args:
        kind: Image or video.
        requested: As `requested_options`.
        default: The default budget, as in EncoderInfo.
        published: The checkpoint's own limits, as in EncoderInfo.
    """
    budget = media_pb2.MediaOptions()
    source = published if requested.detail == media_pb2.DETAIL_ORIGINAL else default
    for field in BUDGET_FIELDS:
        if source.HasField(field):  # type: ignore[arg-type]
            bound = getattr(source, field)
            low = requested.detail == media_pb2.DETAIL_LOW
            setattr(budget, field, min(getattr(LOW, field), bound) if low else bound)
    resolved = relevant_options(kind, merge_options(budget, requested))
    resolved.ClearField("detail")
    return resolved
