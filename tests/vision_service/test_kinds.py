"""A file that cannot be read is named by what it is."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from serving.errors import Code, ServiceError
from tests.pictures import noise, png, video
from tests.vision_service.clips import noises, write_clip
from vision_service.families.qwen3_vl.preprocess import Preprocessor
from vision_service.images import decode_image
from vision_service.kinds import kind_of
from vision_service.media import Options


def save(kind: str) -> bytes:
    """An image in a format of Pillow."""
    out = io.BytesIO()
    noise(64, 64).save(out, kind)
    return out.getvalue()


def iso(brand: bytes, *others: bytes) -> bytes:
    """The beginning of an ISO media file."""
    return (16 + 4 * len(others)).to_bytes(4) + b"ftyp" + brand + bytes(4) + b"".join(others) + bytes(200)


FOREIGN = [
    (iso(b"heic", b"mif1", b"heic"), "a HEIC image", "JPEG or PNG"),
    (iso(b"mif1", b"mif1", b"heic"), "a HEIC image", "JPEG or PNG"),
    (iso(b"crx "), "raw image", "JPEG or PNG"),
    (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(50), "a JPEG XL image", "JPEG or PNG"),
    (b"\xff\x0a" + bytes(50), "a JPEG XL image", "JPEG or PNG"),
    (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG image", "JPEG or PNG"),
    (b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- one --><!-- two -->\n<svg width='1'/>", "an SVG image", "JPEG or PNG"),
    (save("PDF"), "a PDF document", "JPEG or PNG"),
    (save("ICO"), "an ICO image", "JPEG or PNG"),
    (save("PPM"), "a PPM, PGM or PBM image", "JPEG or PNG"),
    (save("TGA"), "a TGA image", "JPEG or PNG"),
    (save("JPEG2000"), "a JPEG 2000 image", "JPEG or PNG"),
    (b"<!DOCTYPE html><html><body>Not found <svg/></body></html>", "an HTML page", "the file of an image"),
    (b"iVBORw0KGgoAAAANSUhEUgAA", "text in base64", "the file of an image"),
]


@pytest.mark.parametrize(("data", "name", "remedy"), FOREIGN, ids=[name for _, name, _ in FOREIGN])
def test_images_of_other_formats(data: bytes, name: str, remedy: str) -> None:
    """The refusal names the format and what to send instead."""
    with pytest.raises(ServiceError) as caught:
        decode_image(data, max_pixels=1 << 20)
    assert (caught.value.code, caught.value.reason) == (Code.INVALID_ARGUMENT, "IMAGE_UNREADABLE")
    assert name in caught.value.message
    assert remedy in caught.value.message


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (png(noise(64, 64)), "is a PNG image; send it as an image"),
        (iso(b"heic"), "is a HEIC image, which cannot be read; convert it to MP4"),
        (b"FLV\x01" + bytes(400), "is an FLV video, which cannot be read; convert it to MP4"),
        ((b"G" + bytes(187)) * 4, "is an MPEG transport stream, which cannot be read; convert it to MP4"),
        (b"#EXTM3U\n#EXTINF:1,\na.ts\n", "is a playlist (HLS); send the file of a video"),
    ],
)
def test_what_is_sent_as_a_video(data: bytes, words: str, preprocessor: Preprocessor) -> None:
    """So does the refusal of a video; a still image is sent elsewhere."""
    with pytest.raises(ServiceError) as caught:
        preprocessor.prepare("video", data, Options())
    assert caught.value.reason == "VIDEO_UNREADABLE"
    assert words in caught.value.message


def test_a_video_that_is_sent_as_an_image(tmp_path: Path) -> None:
    """It is named, and where it belongs."""
    for data, name in (
        (write_clip(tmp_path / "clip.mp4", noises(4)), "an MP4 or MOV video"),
        (write_clip(tmp_path / "clip.avi", noises(4)), "an AVI video"),
        (video(noises(2), 10), "a WebM or MKV video"),
    ):
        with pytest.raises(ServiceError, match=f"is {name}; send it as a video"):
            decode_image(data, max_pixels=1 << 20)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_formats_that_are_read(kind: str) -> None:
    """They are known, and never told to be converted."""
    known = kind_of(save(kind))
    assert known is not None
    assert known.sort == "image"
    assert known.name.split()[1].upper() == kind
    assert "convert" not in known.refusal("image") or kind == "AVIF"


def test_what_nothing_tells() -> None:
    """Bytes that say nothing have no kind."""
    for data in (b"", bytes(1000), b"This is a text file.", Image.new("RGB", (9, 9)).tobytes()):
        assert kind_of(data) is None
