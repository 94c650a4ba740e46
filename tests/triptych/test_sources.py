"""What an image and a video are made of."""

from __future__ import annotations

import base64
import io
import os
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

import triptych
from tests.pictures import noise, png

PIXELS = noise(24, 16, 1)
FILE = png(PIXELS)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of a picture."""
    (tmp_path / "scene.png").write_bytes(FILE)
    return tmp_path / "scene.png"


def _decoded(image: triptych.Image) -> Pillow.Image:
    return Pillow.open(io.BytesIO(image.data))


def test_a_file_in_any_shape_is_its_bytes(path: Path) -> None:
    """Bytes, paths, file objects from their position, and data: URLs; what has a path has it as its name."""
    url = f"data:image/png;base64,{base64.b64encode(FILE).decode()}"
    for source in (FILE, bytearray(FILE), memoryview(FILE), path, str(path), io.BytesIO(FILE), path.open("rb"), url):
        for kind in (triptych.Image, triptych.Video):
            if isinstance(source, io.IOBase):
                source.seek(0)
            medium = kind(source)  # type: ignore[arg-type]
            assert medium.data == FILE
            assert medium.name in ("", str(path))
    assert triptych.Image(path).name == str(path)
    assert triptych.Image("data:,a%20b").data == b"a b"


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16"])
def test_an_image_of_pillow_keeps_its_pixels(mode: str) -> None:
    """As a PNG file; modes that PNG has not become RGB as Pillow converts them."""
    image = Pillow.open(io.BytesIO(FILE)).convert("L" if mode == "I;16" else mode)
    image = image.convert(mode) if mode == "I;16" else image
    sent = _decoded(triptych.Image(image))
    expected = image.convert("RGB") if mode in ("CMYK", "YCbCr") else image
    assert sent.format == "PNG"
    assert sent.mode == expected.mode
    assert sent.tobytes() == expected.tobytes()


def test_an_image_of_pillow_is_turned_as_its_file_would_be() -> None:
    """The orientation of a camera is no part of a PNG file."""
    picture = Pillow.open(io.BytesIO(FILE))
    tags = picture.getexif()
    tags[0x0112] = 6  # turned by a quarter
    file = io.BytesIO()
    picture.save(file, "JPEG", exif=tags)
    assert picture.size == (24, 16)
    assert _decoded(triptych.Image(Pillow.open(file))).size == (16, 24)


@pytest.mark.parametrize("channels", [None, 1, 3, 4])
def test_an_array_keeps_its_pixels(channels: int | None) -> None:
    """Grey, RGB and RGBA, also where its memory is not in order."""
    shape = (6, 5) if channels is None else (6, 5, channels)
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)[::-1]
    sent = np.asarray(_decoded(triptych.Image(array)))
    assert np.array_equal(sent, array if channels != 1 else array[:, :, 0])


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    """Nobody may ever write to it."""
    os.mkfifo(tmp_path / "pipe.mp4")
    for make in (triptych.Image, triptych.Video, triptych.Image.open, triptych.Video.open):
        with pytest.raises(OSError, match="no regular file"):
            make(tmp_path / "pipe.mp4")


@pytest.mark.parametrize(
    ("source", "error", "said"),
    [
        (np.zeros((4, 4, 3)), ValueError, "float64"),
        (np.zeros((2, 4, 4, 3), np.uint8), ValueError, r"\[2, 4, 4, 3\]"),
        (np.zeros((4, 4, 2), np.uint8), ValueError, "channels"),
        (np.zeros((0, 4), np.uint8), ValueError, "uint8"),
        (Pillow.new("F", (2, 2)), ValueError, "convert it to 'RGB'"),
        (io.StringIO("x"), TypeError, "binary mode"),
        (io.BytesIO(), ValueError, r"seek\(0\)"),
        ("https://example.com/a.png", ValueError, "download"),
        ("data:image/png;base64,!", ValueError, "base64"),
        ("data:image/png", ValueError, "comma"),
        (5, TypeError, "not int"),
        (None, TypeError, "not NoneType"),
        ("no such file", OSError, "no such file"),
        ("/dev/zero", OSError, "no regular file"),
    ],
)
def test_what_is_no_image_is_refused(source: Any, error: type[Exception], said: str) -> None:
    """With a sentence that says what to give."""
    with pytest.raises(error, match=said):
        triptych.Image(source)


def test_the_client_imports_neither_pillow_nor_numpy() -> None:
    """Who sends files needs neither, and pydantic's part is imported where a type is given."""
    code = "import sys, triptych; triptych.user(b'x'); print({'PIL', 'numpy', 'triptych.schemas'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


@pytest.mark.parametrize("package", ["triptych", "serving", "vlm"])
def test_type_checkers_read_the_annotations(package: str) -> None:
    """Without the marker, mypy and pyright take everything of a package for Any."""
    assert files(package).joinpath("py.typed").is_file()
