"""Decodes image files to RGB pixels, or raises an error with the cause."""

from __future__ import annotations

import contextlib
import hashlib
import io
import struct
from collections.abc import Callable

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError, features

from serving.errors import Reason, ServiceError, invalid, too_large
from vision_service import jpeg, png
from vision_service.kinds import kind_of
from vision_service.media import PATH
from vision_service.outlines import canvas_of

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", *(["AVIF"] if features.check("avif") else []))
"""Supported formats. Pillow has some forty more, each with a parser that would get untrusted bytes."""

MAX_ASPECT_RATIO = 200
"""Longest side over shortest, as in transformers' `smart_resize`."""

_BAND_ROWS = 256

_PNG_HEAD = b"\x89PNG\r\n\x1a\n\x00\x00\x00\x0dIHDR"
"""The first bytes of every PNG; width and height follow."""

# The limit that is checked here is a setting, and stricter. Pillow's own would also write a warning to stderr for
# images that the setting allows.
Image.MAX_IMAGE_PIXELS = None

DAMAGE = (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, EOFError, OverflowError, struct.error)
"""Exceptions of Pillow's parsers for damaged files, found by tests with such files; they depend on the format."""


def decode_image(data: bytes, *, max_pixels: int, check: Callable[[int, int], None] | None = None) -> Image.Image:
    """Decode an image upright in RGB; of an animated file, the first frame.

    Transparent pixels are blended with white, as in transformers. 16-bit greyscale keeps its upper 8 bits, as Pillow
    does for 16-bit colour. A JPEG whose pixels are all there needs no end. Texts and profiles of a PNG are not read.

    Args:
        data: The file's bytes.
        max_pixels: Most pixels in its header; checked before anything is decoded.
        check: Called with width and height before the pixels are decoded; may raise to refuse them. The two are swapped
            if the file's orientation is rotated by 90 degrees.

    Raises:
        ServiceError: INVALID_ARGUMENT with reason IMAGE_UNREADABLE, IMAGE_TRUNCATED, IMAGE_ASPECT_RATIO or
            IMAGE_MODE_UNSUPPORTED; RESOURCE_EXHAUSTED with reason IMAGE_TOO_LARGE.
    """
    with _open(data, max_pixels) as opened:
        _check_size(opened.width, opened.height, max_pixels)
        if check is not None:
            check(opened.width, opened.height)
        image = _load(opened, data)
        _turn_upright(image)
        try:
            return to_rgb(image)
        except DAMAGE as error:
            raise invalid(
                PATH,
                f"has the pixel mode {image.mode}, which cannot be shown as RGB; convert it to 8-bit RGB",
                reason=Reason.IMAGE_MODE_UNSUPPORTED,
            ) from error


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise invalid(PATH, f"is an image of {width} x {height} pixels", reason=Reason.IMAGE_UNREADABLE)
    if width * height > max_pixels:
        raise too_large(
            PATH,
            f"is an image of {width} x {height} pixels, over the limit of {max_pixels} pixels (max_image_pixels); "
            "make it smaller",
            reason=Reason.IMAGE_TOO_LARGE,
            limit=max_pixels,
        )
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise invalid(
            PATH,
            f"is an image of {width} x {height} pixels; one side may be at most {MAX_ASPECT_RATIO} times the other",
            reason=Reason.IMAGE_ASPECT_RATIO,
        )


def _open(data: bytes, max_pixels: int) -> Image.Image:
    if data.startswith(png.SIGNATURE):
        data = png.without_extras(data)
    elif (canvas := canvas_of(data)) is not None:
        _check_size(*canvas, max_pixels)
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        if data.startswith(_PNG_HEAD) and len(data) >= len(_PNG_HEAD) + 8:
            # Pillow reads up to the first pixels before it fails: check the size first, which may be the cause.
            width, height = struct.unpack_from(">II", data, len(_PNG_HEAD))
            _check_size(width, height, max_pixels)
            raise _breaks_off() from error
        kind = kind_of(data)
        description = (
            f"is no image that can be read; use {', '.join(FORMATS)}" if kind is None else kind.refusal("image")
        )
        raise invalid(PATH, description, reason=Reason.IMAGE_UNREADABLE) from error
    except DAMAGE as error:
        raise _damaged(error) from error


def _load(image: Image.Image, data: bytes) -> Image.Image:
    """Decode the pixels; of a JPEG that has all of them and no end, as another image."""
    try:
        image.load()
    except DAMAGE as error:
        refusal = _damaged(error)
        if refusal.reason == Reason.IMAGE_TRUNCATED.name and data.startswith(jpeg.SIGNATURE):
            image.close()  # gives its memory back
            with contextlib.suppress(*DAMAGE):
                if (whole := _with_end(data)) is not None:
                    return whole
        raise refusal from error
    return image


def _with_end(data: bytes) -> Image.Image | None:
    """The image of a JPEG without an end, if the same pixels come out whatever follows; None if not."""
    image: Image.Image | None = None
    digests: set[bytes] = set()
    for ended in jpeg.with_ends(data):
        image = None  # only one is in memory
        image = Image.open(io.BytesIO(ended), formats=("JPEG",))
        image.load()
        digests.add(_digest(image))
        if len(digests) > 1:
            return None
    return image


def _digest(image: Image.Image) -> bytes:
    digest = hashlib.sha256()
    for top in range(0, image.height, _BAND_ROWS):
        digest.update(image.crop((0, top, image.width, min(top + _BAND_ROWS, image.height))).tobytes())
    return digest.digest()


def _damaged(error: BaseException) -> ServiceError:
    # Pillow has one exception for every failure of a decoder; most of its decoders name this one in the text.
    if "truncated" in str(error).lower():
        return _breaks_off()
    return invalid(PATH, "is an image that is damaged or cut off", reason=Reason.IMAGE_UNREADABLE)


def _breaks_off() -> ServiceError:
    return invalid(PATH, "is an image that breaks off before its end; send all of it", reason=Reason.IMAGE_TRUNCATED)


def _turn_upright(image: Image.Image) -> None:
    """Apply the EXIF orientation, as transformers' `load_image` does."""
    try:
        if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            ImageOps.exif_transpose(image, in_place=True)
    except DAMAGE:
        return  # a damaged EXIF orientation is no reason to refuse the picture


def to_rgb(image: Image.Image) -> Image.Image:
    """The image, or the frame of it that is loaded, in RGB as `decode_image` describes.

    Raises:
        ValueError: Its pixels are 32-bit integers or floats.
    """
    if image.mode in ("I", "F"):
        # No white level is defined for 32-bit integers and floats, so any scale would be a guess.
        raise ValueError(image.mode)
    if image.mode.startswith("I;16"):
        image = _from_16_bits(image)
    if "A" in image.getbands() or "a" in image.getbands() or image.info.get("transparency") is not None:
        return _on_white(image)
    return image.convert("RGB")


def _from_16_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image)  # in the machine's byte order
    grey = Image.fromarray((values >> 8).astype(np.uint8))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):  # the one transparent grey value
        grey.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return grey


def _on_white(image: Image.Image) -> Image.Image:
    """Blend with white as transformers' `convert_to_rgb` does, in bands, with a third of the memory."""
    rgb = Image.new("RGB", image.size)
    for top in range(0, image.height, _BAND_ROWS):
        box = (0, top, image.width, min(top + _BAND_ROWS, image.height))
        band = image.crop(box)
        band.info = image.info  # holds a palette's transparency
        band = band.convert("RGBA")
        white = Image.new("RGBA", band.size, (255, 255, 255, 255))
        rgb.paste(Image.alpha_composite(white, band).convert("RGB"), box)
    return rgb
