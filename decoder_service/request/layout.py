"""Checks the layout of a medium, from a header of features or a request to count a prompt's tokens."""

from __future__ import annotations

from collections.abc import Callable

from decoder_service.chat import Layout, MediaKind, Medium
from serving.errors import invalid
from serving.media import MAX_FRAMES
from vlm.v1 import media_pb2

MAX_TIMESTAMP = 1e7
"""In seconds, about four months. Timestamps are part of the prompt, so their length is bounded."""

TokenCount = Callable[[tuple[int, int, int]], int]
"""Function from the patches (t, h, w) of a medium to its number of feature rows."""

WIRE_KINDS = {MediaKind.IMAGE: media_pb2.MEDIA_KIND_IMAGE, MediaKind.VIDEO: media_pb2.MEDIA_KIND_VIDEO}


def checked_layout(sent: media_pb2.MediaLayout, medium: Medium, *, token_count: TokenCount, path: str) -> Layout:
    """Check the layout of a medium.

    Args:
        sent: The message.
        medium: The medium to which it must belong.
        token_count: The family's `Family.token_count`.
        path: Path of the layout in the request.

    Raises:
        ServiceError: INVALID_ARGUMENT with the field's path.
    """
    if sent.kind != WIRE_KINDS[medium.kind]:
        raise invalid(f"{path}.kind", f"is {int(sent.kind)} and the medium is of kind {medium.kind.value}")
    if sent.digest != medium.digest:
        raise invalid(f"{path}.digest", f"is {sent.digest[:80]!r} and the medium is {medium.digest}")
    t, h, w = grid = (sent.grid_thw.t, sent.grid_thw.h, sent.grid_thw.w)
    try:
        expected_tokens = token_count(grid)
    except ValueError as error:
        raise invalid(f"{path}.grid_thw", str(error)) from None
    if medium.kind is MediaKind.IMAGE and t != 1:
        raise invalid(f"{path}.grid_thw.t", f"is {t} and must be 1 for an image")
    if sent.token_count != expected_tokens:
        raise invalid(f"{path}.token_count", f"is {sent.token_count} and the grid {t}x{h}x{w} gives {expected_tokens}")
    expected = t if medium.kind is MediaKind.VIDEO else 0
    if len(sent.timestamps) != expected:
        raise invalid(f"{path}.timestamps", f"has {len(sent.timestamps)} times and must have {expected}")
    for index, seconds in enumerate(sent.timestamps):
        if not 0 <= seconds <= MAX_TIMESTAMP:
            raise invalid(f"{path}.timestamps[{index}]", f"is {seconds:g} and must be from 0 to {MAX_TIMESTAMP:g}")
    if len(sent.frame_times) > MAX_FRAMES:
        raise invalid(f"{path}.frame_times", f"has {len(sent.frame_times)} times and may have {MAX_FRAMES}")
    return Layout(
        medium,
        grid,
        expected_tokens,
        tuple(sent.timestamps),
        size_given=(sent.size_given.width, sent.size_given.height),
        size_used=(sent.size_used.width, sent.size_used.height),
        frame_times=tuple(sent.frame_times),
    )
