"""GIF, animated PNG and animated WebP, and JPEGs one after another, are videos."""

from __future__ import annotations

import io
import struct
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from PIL import Image

from serving.bundle import Bundle
from serving.errors import Code, ServiceError
from tests.pictures import noise
from tests.vision_service.test_video import limited
from vision_service.families.qwen3_vl.preprocess import Preprocessor
from vision_service.media import Options, PreparedMedium, WorkCancelledError

KINDS = ["GIF", "PNG", "WEBP"]


def greys(count: int) -> list[Image.Image]:
    """Frames that their grey tells apart."""
    return [Image.new("RGB", (96, 64), (20 * i,) * 3) for i in range(count)]


def animation(frames: list[Image.Image], kind: str, durations: int | list[int], **options: Any) -> bytes:
    """The frames in one file, each for its milliseconds."""
    if kind == "WEBP":
        options["lossless"] = True
    out = io.BytesIO()
    frames[0].save(out, kind, save_all=True, append_images=frames[1:], duration=durations, **options)
    return out.getvalue()


def jpegs(frames: list[Image.Image], **options: Any) -> list[bytes]:
    """Each frame as a JPEG."""
    files = []
    for frame in frames:
        out = io.BytesIO()
        frame.save(out, "JPEG", quality=95, **options)
        files.append(out.getvalue())
    return files


def seen(medium: PreparedMedium) -> list[int]:
    """The grey of each sampled frame."""
    frames = medium.patches.reshape(medium.grid.t, -1, 3, 2, 16, 16)[:, 0, 0, :, 8, 8]
    return [int(value) for value in frames.reshape(-1)[: len(medium.frame_times)]]


def refusal(preprocessor: Preprocessor, data: bytes, **options: Any) -> ServiceError:
    """Why it is refused."""
    with pytest.raises(ServiceError) as caught:
        preprocessor.prepare("video", data, Options(**options))
    return caught.value


@pytest.mark.parametrize("kind", KINDS)
def test_frames_and_times(kind: str, preprocessor: Preprocessor) -> None:
    """Every frame is there at its own time, however long each is shown."""
    durations = [200, 1000, 300, 100, 400, 2000, 500, 500]
    data = animation(greys(8), kind, durations)
    medium = preprocessor.prepare("video", data, Options())
    assert np.abs(np.subtract(seen(medium), [20 * i for i in range(8)])).max() <= 1
    assert list(medium.frame_times) == pytest.approx([0, 0.2, 1.2, 1.5, 1.6, 2.0, 4.0, 4.5])
    assert list(medium.timestamps) == pytest.approx([0.1, 1.35, 1.8, 4.25])


@pytest.mark.parametrize("kind", KINDS)
def test_sampling(kind: str, preprocessor: Preprocessor) -> None:
    """Two frames a second are sampled, as of any video."""
    medium = preprocessor.prepare("video", animation(greys(12), kind, 250), Options())
    assert len(medium.frame_times) == 6
    assert medium.frame_times[-1] == pytest.approx(2.75)
    assert seen(medium)[-1] == pytest.approx(220, abs=1)


def test_parts_that_replace_parts(preprocessor: Preprocessor) -> None:
    """Frames that hold only what changed, on transparency, are whole pictures, on white."""
    frames = []
    for i in range(4):
        frame = Image.new("RGBA", (96, 64), (0, 0, 0, 0))
        frame.paste((0, 0, 0, 255), (0, 0, 24 * (i + 1), 64))
        frames.append(frame)
    for kind in ("GIF", "PNG"):
        medium = preprocessor.prepare("video", animation(frames, kind, 500), Options())
        size = medium.grid.h * medium.grid.w
        pixels = medium.patches.reshape(2, size, 3, 2, 16, 16).transpose(0, 3, 1, 2, 4, 5)
        means = pixels.reshape(4, -1).mean(axis=1)
        assert list(means) == sorted(means, reverse=True), kind
        assert means[3] < 2, kind
        assert means[0] == pytest.approx(255 * 3 / 4, abs=12), kind


def test_frames_without_a_duration(preprocessor: Preprocessor) -> None:
    """They are shown for a tenth of a second, as in browsers."""
    medium = preprocessor.prepare("video", animation(greys(8), "GIF", 0), Options(fps=10.0))
    assert list(medium.frame_times) == pytest.approx([i / 10 for i in range(8)])


def test_picture_beside_the_animation(preprocessor: Preprocessor) -> None:
    """A PNG's picture for those who show no animation is not a frame of it."""
    data = animation([Image.new("RGB", (96, 64), (255, 0, 0)), *greys(4)], "PNG", 500, default_image=True)
    medium = preprocessor.prepare("video", data, Options())
    assert seen(medium) == [0, 20, 40, 60]


def test_gif_of_one_frame(preprocessor: Preprocessor) -> None:
    """It is a video of one frame."""
    out = io.BytesIO()
    noise(96, 64).save(out, "GIF")
    assert preprocessor.prepare("video", out.getvalue(), Options()).timestamps == (0.0,)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.97])
def test_cut_off(kind: str, share: float, preprocessor: Preprocessor) -> None:
    """An animation that breaks off is refused."""
    data = animation([noise(96, 64, seed) for seed in range(8)], kind, 200)
    error = refusal(preprocessor, data[: int(len(data) * share)])
    assert (error.code, error.reason) == (Code.INVALID_ARGUMENT, "VIDEO_TRUNCATED")


@pytest.mark.parametrize("kind", KINDS)
def test_damage_never_surprises(kind: str, preprocessor: Preprocessor) -> None:
    """A file with random bytes changed is decoded or refused; nothing else comes out."""
    whole = animation([noise(96, 64, seed) for seed in range(4)], kind, 200)
    rng = np.random.default_rng(0)
    for _ in range(40):
        data = bytearray(whole)
        for place in rng.integers(13, len(data), 8):
            data[place] = rng.integers(0, 256)
        try:
            preprocessor.prepare("video", bytes(data), Options())
        except ServiceError as error:
            assert error.reason.startswith("VIDEO_")  # noqa: PT017  # some are decoded


@pytest.mark.parametrize("kind", KINDS)
def test_limits(kind: str, bundle: Bundle) -> None:
    """Frames, seconds, sampled frames and pixels are limited as of any video."""
    data = animation(greys(12), kind, 250)
    for limit, reason in (
        ({"frames": 11}, "VIDEO_TOO_MANY_FRAMES"),
        ({"sampled": 5}, "VIDEO_TOO_MANY_FRAMES"),
        ({"seconds": 2.9}, "VIDEO_TOO_LONG"),
        ({"pixels": 96 * 64 - 1}, "VIDEO_TOO_LARGE"),
    ):
        error = refusal(limited(bundle, **limit), data)
        assert (error.code, error.reason) == (Code.RESOURCE_EXHAUSTED, reason)


def test_a_later_frame_that_is_huge(preprocessor: Preprocessor) -> None:
    """A GIF's frame that is larger than its picture is refused before memory for it is taken."""
    frame = b"\x21\xf9\x04" + bytes([2 << 2]) + bytes(4) + b"," + struct.pack("<HHHHB", 0, 0, 65_535, 65_535, 0)
    data = animation(greys(2), "GIF", 200)[:-1] + frame + b"\2\2\x4c\1\0;"
    assert refusal(preprocessor, data).reason == "VIDEO_TOO_LARGE"


@pytest.mark.parametrize("kind", [*KINDS, "JPEG"])
def test_cancelling_stops_decoding(kind: str, preprocessor: Preprocessor) -> None:
    """Once nobody wants it any more, no further frame is decoded."""
    data = b"".join(jpegs(greys(8))) if kind == "JPEG" else animation(greys(8), kind, 500)
    asked: list[None] = []

    def cancelled() -> bool:
        asked.append(None)
        return len(asked) == 3

    with pytest.raises(WorkCancelledError):
        preprocessor.prepare("video", data, Options(), cancelled)
    assert len(asked) == 3


def test_jpegs_one_after_another(preprocessor: Preprocessor) -> None:
    """Every frame is kept, half a second after the one before; ends and small pictures in them do not matter."""
    thumbnail = jpegs([noise(32, 32)])[0]
    exif = b"Exif\0\0" + thumbnail  # a JPEG within a segment is no frame
    files = jpegs(greys(7), exif=exif)
    for data in (
        b"".join(files),
        b"".join(file[:-2] for file in files),
        b"".join(file + bytes(100) for file in files),
    ):
        medium = preprocessor.prepare("video", data, Options())
        assert np.abs(np.subtract(seen(medium), [20 * i for i in range(7)])).max() <= 2
        assert list(medium.frame_times) == [i / 2 for i in range(7)]
        assert all(later - earlier == 1.0 for earlier, later in pairwise(medium.timestamps[:-1]))


def test_progressive_jpegs_of_several_sizes(preprocessor: Preprocessor) -> None:
    """All frames take the size of the first."""
    files = [*jpegs(greys(2), progressive=True), *jpegs([noise(200, 100)])]
    medium = preprocessor.prepare("video", b"".join(files), Options())
    assert len(medium.frame_times) == 3
    assert medium.size_given == (96, 64)


def test_a_jpeg_that_breaks_off(preprocessor: Preprocessor) -> None:
    """The frame is named."""
    files = jpegs([noise(96, 64, seed) for seed in range(3)])
    error = refusal(preprocessor, b"".join(files)[: -len(files[2]) // 3])
    assert (error.code, error.reason) == (Code.INVALID_ARGUMENT, "VIDEO_TRUNCATED")
    assert "frame 3" in error.message


def test_limits_of_jpegs(bundle: Bundle) -> None:
    """They are limited as well."""
    data = b"".join(jpegs(greys(12)))
    for limit, reason in (
        ({"frames": 11}, "VIDEO_TOO_MANY_FRAMES"),
        ({"sampled": 5}, "VIDEO_TOO_MANY_FRAMES"),
        ({"seconds": 5.9}, "VIDEO_TOO_LONG"),
        ({"pixels": 96 * 64 - 1}, "VIDEO_TOO_LARGE"),
    ):
        error = refusal(limited(bundle, **limit), data)
        assert (error.code, error.reason) == (Code.RESOURCE_EXHAUSTED, reason)
