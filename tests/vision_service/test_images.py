"""Image files of every sort become RGB, or are refused for a reason of their own."""

from __future__ import annotations

import io
import re
import struct
import tracemalloc
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps
from transformers.image_transforms import convert_to_rgb

from serving.errors import Code, ServiceError
from tests.pictures import noise, png
from vision_service.images import FORMATS, decode_image

LIMIT = 4_000_000


def save(image: Image.Image, kind: str, **options: object) -> bytes:
    """The image as a file."""
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def png_of(width: int, height: int, depth: int, colour: int, chunks: list[tuple[bytes, bytes]]) -> bytes:
    """A PNG put together by hand."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    out = b"\x89PNG\r\n\x1a\n"
    for name, data in [(b"IHDR", header), *chunks, (b"IEND", b"")]:
        out += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    return out


def refusal(data: bytes, max_pixels: int = LIMIT) -> ServiceError:
    """Why an image is refused."""
    with pytest.raises(ServiceError) as caught:
        decode_image(data, max_pixels=max_pixels)
    assert [violation.field for violation in caught.value.violations] == ["data"]
    return caught.value


@pytest.mark.parametrize("kind", FORMATS)
def test_every_named_format_is_read(kind: str) -> None:
    """Each format decodes to what Pillow decodes it to."""
    data = save(noise(90, 60), kind)
    expected = Image.open(io.BytesIO(data)).convert("RGB")
    assert decode_image(data, max_pixels=LIMIT).tobytes() == expected.tobytes()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"])
def test_modes_become_rgb_as_in_transformers(mode: str) -> None:
    """Whatever a pixel is made of, and whether or not it is transparent, RGB comes out as transformers makes it."""
    alpha = Image.linear_gradient("L").resize((70, 300))
    picture = noise(70, 300).convert("RGBA")
    picture.putalpha(alpha)
    source = picture.convert("P").convert("PA") if mode == "PA" else picture.convert(mode)
    data = save(source, "PNG" if mode in ("1", "L", "LA", "P", "RGB", "RGBA") else "TIFF")
    stored = Image.open(io.BytesIO(data))
    assert np.array_equal(decode_image(data, max_pixels=LIMIT), convert_to_rgb(stored, return_numpy=True))


def test_transparent_palette_is_laid_on_white() -> None:
    """A palette entry that is transparent shows white, one that is half so is half white."""
    image = Image.new("P", (4, 2))
    image.putpalette([255, 0, 0, 0, 0, 0, 0, 0, 255])
    image.putdata([0, 1, 2, 2] * 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = np.asarray(decode_image(save(image, "PNG", transparency=bytes([0, 128, 255])), max_pixels=LIMIT))
    assert got[0].tolist() == [[255, 255, 255], [127, 127, 127], [0, 0, 255], [0, 0, 255]]


def test_16_bit_grey_keeps_its_upper_bits() -> None:
    """The darkest and the brightest of 65,536 greys, and those between, land where they belong; nothing is clipped."""
    values = np.linspace(0, 65_535, 40 * 30).astype(np.uint16).reshape(30, 40)
    for data in (
        save(Image.fromarray(values), "PNG"),
        save(Image.fromarray(values), "TIFF"),
        save(Image.fromarray(values.astype(">u2")), "TIFF"),
    ):
        got = np.asarray(decode_image(data, max_pixels=LIMIT))
        assert np.array_equal(got, np.repeat((values >> 8).astype(np.uint8)[..., None], 3, axis=-1))


def test_16_bit_grey_with_a_transparent_value() -> None:
    """The one grey that a PNG calls transparent shows white, its neighbour that shares the upper byte does not."""
    rows = b"".join(b"\0" + struct.pack(">HH", 0x1205, 0x1206) for _ in range(2))
    data = png_of(2, 2, 16, 0, [(b"tRNS", b"\x12\x05"), (b"IDAT", zlib.compress(rows))])
    assert np.asarray(decode_image(data, max_pixels=LIMIT))[0].tolist() == [[255] * 3, [0x12] * 3]


def test_cmyk_jpeg() -> None:
    """A CMYK JPEG, as print shops send them, comes out in its own colours and not inverted."""
    data = save(Image.new("RGB", (64, 64), (200, 30, 30)).convert("CMYK"), "JPEG", quality=95)
    assert Image.open(io.BytesIO(data)).mode == "CMYK"
    middle = np.asarray(decode_image(data, max_pixels=LIMIT))[32, 32].astype(int)
    assert np.abs(middle - [200, 30, 30]).max() <= 6


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int) -> None:
    """A picture taken with the camera held any way comes out upright."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    for kind in ("JPEG", "PNG", "WEBP", "TIFF"):
        data = save(noise(96, 64), kind, exif=exif)
        expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
        got = decode_image(data, max_pixels=LIMIT)
        assert got.size == ((96, 64) if orientation < 5 else (64, 96))
        assert got.tobytes() == expected.tobytes()


def test_damaged_exif_is_ignored() -> None:
    """EXIF that makes no sense does not cost the picture."""
    data = save(noise(64, 64), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage")
    assert decode_image(data, max_pixels=LIMIT).size == (64, 64)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_first_frame_of_an_animation(kind: str) -> None:
    """Of an animated file the first frame is seen."""
    frames = [Image.new("RGB", (64, 64), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    data = save(frames[0], kind, save_all=True, append_images=frames[1:], duration=100)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    got = decode_image(data, max_pixels=LIMIT)
    assert np.abs(np.asarray(got)[30, 30].astype(int) - [255, 0, 0]).max() <= 3


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("share", [0.05, 0.5, 0.97])
def test_cut_off_files_are_refused(kind: str, share: float) -> None:
    """A file that breaks off is refused, however much of it there is; no grey rest is ever looked at."""
    pixels = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    data = save(Image.fromarray(pixels), kind)
    error = refusal(data[: int(len(data) * share)])
    assert error.code is Code.INVALID_ARGUMENT
    assert error.reason in (("IMAGE_TRUNCATED",) if kind not in ("WEBP", "AVIF") else ("IMAGE_UNREADABLE",))


def _with_chunks(data: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG with chunks after its header."""
    body = b"".join(
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks
    )
    return data[:33] + body + data[33:]


_MANY = 3 << 20  # over the megabyte that Pillow decompresses


@pytest.mark.parametrize(
    "chunk",
    [
        (b"zTXt", b"workflow\0\0" + zlib.compress(bytes(_MANY))),
        (b"iTXt", b"workflow\0\1\0\0\0" + zlib.compress(bytes(_MANY))),
        (b"tEXt", b"workflow\0" + b"x" * _MANY),
        (b"iCCP", b"profile\0\0" + zlib.compress(bytes(_MANY))),
        (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(bytes(_MANY))),
        (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(bytes(_MANY))),
        (b"gAMA", b"short"[:2]),
    ],
    ids=["zTXt", "iTXt", "tEXt", "iCCP", "exif", "xmp", "damaged"],
)
def test_extras_of_a_png_do_not_matter(chunk: tuple[bytes, bytes]) -> None:
    """Long texts and profiles cost nothing and refuse nothing, before the pixels and after them."""
    picture = noise(90, 60)
    before = _with_chunks(png(picture), chunk)
    assert decode_image(before, max_pixels=LIMIT).tobytes() == picture.tobytes()
    alone = _with_chunks(png(picture), chunk)[33 : -len(png(picture)) + 33]
    after = png(picture)[:-12] + alone + png(picture)[-12:]
    assert decode_image(after, max_pixels=LIMIT).tobytes() == picture.tobytes()


def test_texts_of_a_png_are_not_decompressed() -> None:
    """A hundred texts of 64 MiB, compressed to less than a thousandth, take no memory."""
    squeezed = zlib.compress(bytes(64 << 20))
    data = _with_chunks(png(noise(64, 64)), *[(b"zTXt", b"Raw profile type exif\0\0" + squeezed)] * 100)
    tracemalloc.start()
    try:
        decode_image(data, max_pixels=LIMIT)
        assert tracemalloc.get_traced_memory()[1] < len(data) * 3 + (8 << 20)
    finally:
        tracemalloc.stop()


def test_orientation_in_a_png_text() -> None:
    """Small texts with the orientation are read still."""
    xmp = b'<x:xmpmeta xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>'
    for head, body in ((b"\0\0\0\0\0", xmp), (b"\0\1\0\0\0", zlib.compress(xmp))):
        data = _with_chunks(png(noise(90, 60)), (b"iTXt", b"XML:com.adobe.xmp" + head + body))
        assert decode_image(data, max_pixels=LIMIT).size == (60, 90)


def _jpeg_files() -> list[bytes]:
    """JPEGs whose pixels are stored in several ways: one scan, several, with restarts, grey."""
    pixels = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    return [
        save(picture, "JPEG", quality=95),
        save(picture, "JPEG", quality=30, subsampling=2),
        save(picture, "JPEG", progressive=True),
        save(picture, "JPEG", restart_marker_blocks=4),
        save(picture, "JPEG", restart_marker_rows=1),
        save(picture.convert("L"), "JPEG"),
        save(picture.convert("CMYK"), "JPEG"),
    ]


@pytest.mark.parametrize("number", range(7))
def test_jpeg_without_its_end(number: int) -> None:
    """A JPEG that lacks nothing but the marker of its end, or half of that, is the same picture."""
    data = _jpeg_files()[number]
    assert data.endswith(b"\xff\xd9")
    whole = decode_image(data, max_pixels=LIMIT)
    for cut in (data[:-1], data[:-2]):
        assert decode_image(cut, max_pixels=LIMIT).tobytes() == whole.tobytes()


@pytest.mark.parametrize("number", range(7))
def test_jpeg_that_lacks_pixels(number: int) -> None:
    """Cut anywhere else, also between scans and at restarts, it is refused: no grey rest is ever looked at."""
    data = _jpeg_files()[number]
    markers = [found.start() for found in re.finditer(rb"\xff[\xc4\xd0-\xd7\xda]", data)]
    shares = [int(len(data) * share) for share in np.linspace(0.2, 0.99, 12)]
    last = range(len(data) - 40, len(data) - 2)
    for at in {*markers, *(marker + 2 for marker in markers), *shares, *last}:
        in_header = at < data.find(b"\xff\xda") + 16
        assert refusal(data[:at]).reason in ("IMAGE_TRUNCATED", *["IMAGE_UNREADABLE"] * in_header), at


def test_gif_with_a_huge_frame_is_refused() -> None:
    """A frame that is larger than the picture of the header counts, before memory for it is taken."""
    header = b"GIF89a" + struct.pack("<HHBBB", 10, 10, 0x80, 0, 0) + bytes([255, 0, 0, 0, 255, 0])
    disposed = b"\x21\xf9\x04" + bytes([2 << 2]) + bytes(4)
    frame = b"," + struct.pack("<HHHHB", 0, 0, 65_535, 65_535, 0) + b"\2\2\x4c\1\0;"
    error = refusal(header + disposed + frame)
    assert (error.code, error.reason) == (Code.RESOURCE_EXHAUSTED, "IMAGE_TOO_LARGE")


def test_webp_with_a_huge_canvas_is_refused() -> None:
    """So does the canvas of a WebP, whose frames may be small."""
    out = bytearray(save(noise(64, 64), "WEBP", save_all=True, append_images=[noise(64, 64, 1)]))
    assert out[12:16] == b"VP8X"
    out[24:30] = (16_383).to_bytes(3, "little") * 2
    error = refusal(bytes(out))
    assert (error.code, error.reason) == (Code.RESOURCE_EXHAUSTED, "IMAGE_TOO_LARGE")


def test_what_is_no_image_is_refused() -> None:
    """Text by the name of .png and zeros are told apart from pictures, and the formats are named."""
    for data in (b"This is a text file, whatever its name.", bytes(1000)):
        error = refusal(data)
        assert (error.code, error.reason) == (Code.INVALID_ARGUMENT, "IMAGE_UNREADABLE")
        assert all(kind in error.message for kind in FORMATS)


def test_formats_that_are_not_named_are_refused() -> None:
    """A format that Pillow knows and the service does not name is not parsed."""
    assert refusal(save(noise(64, 64), "PPM")).reason == "IMAGE_UNREADABLE"


def test_huge_header_is_refused_before_any_pixel() -> None:
    """A header of 60,000 x 60,000 pixels is refused by what it says, without memory and without a warning."""
    data = png_of(60_000, 60_000, 8, 2, [(b"IDAT", zlib.compress(b""))])
    assert len(data) < 100
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        error = refusal(data, max_pixels=1 << 27)
    assert (error.code, error.reason) == (Code.RESOURCE_EXHAUSTED, "IMAGE_TOO_LARGE")
    assert error.metadata["limit"] == str(1 << 27)
    assert "60000 x 60000" in error.message
    assert str(1 << 27) in error.message


def test_allowed_size_warns_nobody() -> None:
    """An image over Pillow's own limit and under the service's is decoded in silence."""
    data = save(Image.new("1", (11_000, 9_000)), "PNG")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode_image(data, max_pixels=1 << 27).size == (11_000, 9_000)


def test_aspect_ratio() -> None:
    """200:1 is accepted, 300:1 is not."""
    assert decode_image(png(Image.new("RGB", (600, 3))), max_pixels=LIMIT).size == (600, 3)
    error = refusal(png(Image.new("RGB", (2, 600))))
    assert (error.code, error.reason) == (Code.INVALID_ARGUMENT, "IMAGE_ASPECT_RATIO")
    assert "2 x 600" in error.message
    assert "200" in error.message


def test_empty_image_is_refused() -> None:
    """An image without a row is refused."""
    assert refusal(png_of(10, 0, 8, 2, [(b"IDAT", zlib.compress(b""))])).reason in ("IMAGE_UNREADABLE",)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_pixels_without_a_white_are_refused(dtype: type) -> None:
    """32-bit integers and floats are refused rather than clipped."""
    values = np.arange(64 * 64, dtype=dtype).reshape(64, 64)
    error = refusal(save(Image.fromarray(values), "TIFF"))
    assert (error.code, error.reason) == (Code.INVALID_ARGUMENT, "IMAGE_MODE_UNSUPPORTED")


def test_lab_is_converted_or_refused_by_name() -> None:
    """A mode that Pillow can store is never an unexpected failure."""
    lab = ImageCms.applyTransform(
        noise(64, 64),
        ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB"),
    )
    assert decode_image(save(lab, "TIFF"), max_pixels=LIMIT).mode == "RGB"
