"""Layouts of media: each agrees with its medium and with itself."""

from __future__ import annotations

import pytest
from google.protobuf import json_format

from decoder_service.chat import Layout, MediaKind, Medium
from decoder_service.families.qwen3_vl.prompt_layout import Qwen3VL
from decoder_service.request.layout import checked_layout
from serving.bundle import TokenIds
from serving.errors import Code, ServiceError
from serving.media import media_digest
from vlm.v1 import media_pb2

DIGEST = media_digest(b"picture")
FAMILY = Qwen3VL(TokenIds(image=1, video=2, vision_start=3, vision_end=4, eos=(0,)), merge_size=2)
IMAGE_LAYOUT = {"kind": "MEDIA_KIND_IMAGE", "digest": DIGEST, "gridThw": {"t": 1, "h": 4, "w": 6}, "tokenCount": 6}
VIDEO_LAYOUT = {
    "kind": "MEDIA_KIND_VIDEO",
    "digest": DIGEST,
    "gridThw": {"t": 2, "h": 4, "w": 6},
    "tokenCount": 12,
    "timestamps": [0.5, 1.5],
}


def layout(sent: dict, kind: MediaKind) -> Layout:
    """Check a layout given as protobuf's JSON."""
    message = json_format.ParseDict(sent, media_pb2.MediaLayout())
    return checked_layout(message, Medium(kind, DIGEST), token_count=FAMILY.token_count, path="layouts[0]")


def test_layouts_become_values() -> None:
    """An image's and a video's layout."""
    assert layout(IMAGE_LAYOUT, MediaKind.IMAGE) == Layout(Medium(MediaKind.IMAGE, DIGEST), (1, 4, 6), 6)
    video = layout(VIDEO_LAYOUT, MediaKind.VIDEO)
    assert video == Layout(Medium(MediaKind.VIDEO, DIGEST), (2, 4, 6), 12, (0.5, 1.5))


@pytest.mark.parametrize(
    ("kind", "change", "field"),
    [
        (MediaKind.VIDEO, {}, "kind"),
        (MediaKind.IMAGE, {"kind": 0}, "kind"),
        (MediaKind.IMAGE, {"digest": media_digest(b"other")}, "digest"),
        (MediaKind.IMAGE, {"gridThw": {"t": 1, "h": 0, "w": 6}}, "grid_thw"),
        (MediaKind.IMAGE, {"gridThw": {"t": 1, "h": 3, "w": 6}}, "grid_thw"),
        (MediaKind.IMAGE, {"gridThw": {"t": 2, "h": 4, "w": 6}}, "grid_thw.t"),
        (MediaKind.IMAGE, {"tokenCount": 7}, "token_count"),
        (MediaKind.IMAGE, {"gridThw": {"t": 1, "h": 2**31, "w": 2**31}}, "token_count"),
        (MediaKind.IMAGE, {"timestamps": [1.0]}, "timestamps"),
        (MediaKind.VIDEO, {**VIDEO_LAYOUT, "timestamps": [1.0]}, "timestamps"),
        (MediaKind.VIDEO, {**VIDEO_LAYOUT, "timestamps": [1.0, -1]}, "timestamps[1]"),
        (MediaKind.VIDEO, {**VIDEO_LAYOUT, "timestamps": [1e300, 1]}, "timestamps[0]"),
        (MediaKind.VIDEO, {**VIDEO_LAYOUT, "timestamps": [1, "NaN"]}, "timestamps[1]"),
    ],
)
def test_layouts_refused(kind: MediaKind, change: dict, field: str) -> None:
    """A layout must be that of its medium and agree with itself."""
    with pytest.raises(ServiceError) as caught:
        layout({**IMAGE_LAYOUT, **change}, kind)
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert [violation.field for violation in caught.value.violations] == [f"layouts[0].{field}"]
