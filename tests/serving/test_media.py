"""Digests and media options."""

from __future__ import annotations

import math

import pytest

from serving.errors import ServiceError
from serving.media import check_options, is_digest, media_digest
from vlm.v1 import media_pb2


def test_a_digest_names_content() -> None:
    """The digest is the well-known SHA-256 of the bytes and is recognised as a digest."""
    digest = media_digest(b"abc")
    assert digest == "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert is_digest(digest)


@pytest.mark.parametrize("text", ["", "sha256:", "sha256:" + "A" * 64, "md5:" + "0" * 64, "sha256:" + "0" * 65])
def test_other_text_is_no_digest(text: str) -> None:
    """Upper case, other lengths and other algorithms are not digests."""
    assert not is_digest(text)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"min_pixels": 0}, "media.min_pixels"),
        ({"max_pixels": 2**31 + 1}, "media.max_pixels"),
        ({"fps": 0.0}, "media.fps"),
        ({"fps": math.nan}, "media.fps"),
        ({"fps": 61.0}, "media.fps"),
        ({"max_frames": 0}, "media.max_frames"),
        ({"min_frames": 5000}, "media.min_frames"),
        ({"min_pixels": 9, "max_pixels": 8}, "media.max_pixels"),
        ({"min_frames": 9, "max_frames": 8}, "media.max_frames"),
        ({"min_video_pixels": 9, "max_video_pixels": 8}, "media.max_video_pixels"),
    ],
)
def test_options_out_of_range_name_the_field(options: dict[str, float], field: str) -> None:
    """Each limit is refused under its own name."""
    with pytest.raises(ServiceError) as caught:
        check_options(media_pb2.MediaOptions(**options), "media")  # type: ignore[arg-type]
    assert caught.value.violations[0].field == field


def test_good_options_pass() -> None:
    """Unset options and options within their ranges are accepted."""
    check_options(media_pb2.MediaOptions(), "media")
    check_options(media_pb2.MediaOptions(min_pixels=1, max_pixels=2**31, fps=2.0, min_frames=1, max_frames=1), "media")
