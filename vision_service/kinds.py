"""What a file is by its first bytes, so that a refusal can name it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from vision_service.media import Kind

_A = {"image": "an image", "video": "a video"}
_CONVERT = {"image": "convert it to JPEG or PNG", "video": "convert it to MP4"}


@dataclass(frozen=True)
class FileKind:
    """A kind of file.

    Attributes:
        name: Its name with an article, as in `a HEIC image`.
        sort: What it holds; None if neither pictures nor a video.
        served: Whether it can be read where it is sent as what it is.
    """

    name: str
    sort: Kind | None = None
    served: bool = False

    def refusal(self, sent: Kind) -> str:
        """What the file is, and what to do about it, to follow its field's name.

        Args:
            sent: What it was sent as, and could not be read.
        """
        if self.sort is None:
            return f"is {self.name}; send the file of {_A[sent]}"
        if not self.served:
            return f"is {self.name}, which cannot be read; {_CONVERT[sent]}"
        if self.sort != sent:
            return f"is {self.name}; send it as {_A[self.sort]}"
        return f"is {self.name} that is damaged or cut off"


def _image(name: str, *, served: bool = False) -> FileKind:
    return FileKind(name, "image", served)


def _video(name: str, *, served: bool = False) -> FileKind:
    return FileKind(name, "video", served)


_BRANDS = {
    "avif avis": _image("an AVIF image"),
    "heic heix heim heis hevc hevx mif1 msf1": _image("a HEIC image"),
    "crx ": _image("a raw image (CR3)"),
    "jp2 jpx jpm": _image("a JPEG 2000 image"),
    "M4A M4B M4P": FileKind("an M4A file with sound"),
}
"""Brands of ISO media files; with others they are MP4 or MOV."""

_BEGINNINGS: tuple[tuple[bytes, FileKind], ...] = (
    (rb"\xff\xd8\xff", _image("a JPEG image", served=True)),
    (rb"\x89PNG\r\n\x1a\n", _image("a PNG image", served=True)),
    (rb"GIF8[79]a", _image("a GIF image", served=True)),
    (rb"RIFF....WEBP", _image("a WebP image", served=True)),
    (rb"RIFF....AVI ", _video("an AVI video", served=True)),
    (rb"RIFF....WAVE", FileKind("a WAV file with sound")),
    (rb"BM....\0\0\0\0", _image("a BMP image", served=True)),
    (rb"II\*\0|MM\0\*", _image("a TIFF image", served=True)),
    (rb"\0\0\0\x0cJXL \r\n\x87\n|\xff\x0a", _image("a JPEG XL image")),
    (rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51", _image("a JPEG 2000 image")),
    (rb"\0\0\x01\0.\0", _image("an ICO image")),
    (rb"P[1-7fF][\s#]", _image("a PPM, PGM or PBM image")),
    (rb"8BPS", _image("a Photoshop file (PSD)")),
    (rb"qoif", _image("a QOI image")),
    (rb"DDS ", _image("a DDS image")),
    (rb"v/1\x01", _image("an OpenEXR image")),
    (rb"#\?RADIANCE", _image("a Radiance HDR image")),
    (rb".{128}DICM", _image("a DICOM image")),
    (rb"%!PS", _image("a PostScript file")),
    (rb"(\xef\xbb\xbf)?\s*(?i:<!doctype html|<html)", FileKind("an HTML page")),
    (rb"(\xef\xbb\xbf)?\s*(?=<[?!s]).*<svg[\s>]", _image("an SVG image")),
    (rb"%PDF", _image("a PDF document")),
    (rb"\x1a\x45\xdf\xa3", _video("a WebM or MKV video", served=True)),
    (rb"FLV\x01", _video("an FLV video")),
    (rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11", _video("a WMV video")),
    (rb"\0\0\x01[\xba\xb3]", _video("an MPEG video")),
    (rb"G.{187}G", _video("an MPEG transport stream")),
    (rb"OggS", _video("an Ogg file")),
    (rb"#EXTM3U", FileKind("a playlist (HLS)")),
    (rb"ID3|\xff[\xfb\xf3\xf2]", FileKind("an MP3 file with sound")),
    (rb"PK\x03\x04", FileKind("a ZIP archive")),
    (rb"\x1f\x8b", FileKind("a gzip archive")),
    (rb"/9j/[0-9A-Za-z+/]{4}|iVBORw0KGgo|R0lGOD|UklGR", FileKind("text in base64")),
    (rb"data:[a-z]+/", FileKind("a data: URL")),
)
_PATTERNS = tuple((re.compile(pattern, re.DOTALL), kind) for pattern, kind in _BEGINNINGS)

_HEAD_BYTES = 1024
_TGA_END = b"TRUEVISION-XFILE.\0"


def kind_of(data: bytes) -> FileKind | None:
    """The kind of a file; None if its bytes do not tell."""
    head = data[:_HEAD_BYTES]
    if head[4:8] == b"ftyp":
        return _iso(head)
    for pattern, kind in _PATTERNS:
        if pattern.match(head):
            return kind
    return _image("a TGA image") if data.endswith(_TGA_END) else None


def _iso(head: bytes) -> FileKind:
    """The kind of an ISO media file by its brand, or by the ones that it is compatible with."""
    size = int.from_bytes(head[:4])
    brands = [head[8:12], *(head[at : at + 4] for at in range(16, min(size, len(head)), 4))]
    if brands[0] in (b"mif1", b"msf1") and any(brand.startswith(b"avi") for brand in brands):
        return _BRANDS["avif avis"]
    for names, kind in _BRANDS.items():
        if brands[0].strip(b" ").decode("latin-1") in names.split():
            return kind
    return _video("an MP4 or MOV video", served=True)
