"""Videos become the frames that transformers samples, or are refused for a reason of their own."""

from __future__ import annotations

import dataclasses
import io
import json
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor, smart_resize
from transformers.video_utils import read_video_pyav

from serving.bundle import Bundle
from serving.errors import Code, ServiceError
from tests import pictures
from tests.vision_service.clips import noises, write_clip, write_sound
from tests.vision_service.conftest import LIMITS
from vision_service.families.qwen3_vl.preprocess import Preprocessor
from vision_service.media import Grid, Options, WorkCancelledError


def refusal(preprocessor: Preprocessor, data: bytes, **options: Any) -> ServiceError:
    """Why a video is refused."""
    with pytest.raises(ServiceError) as caught:
        preprocessor.prepare("video", data, Options(**options))
    assert [violation.field for violation in caught.value.violations] == ["data"]
    return caught.value


def limited(bundle: Bundle, **video: Any) -> Preprocessor:
    """A preprocessor with another limit on videos."""
    return Preprocessor(bundle, dataclasses.replace(LIMITS, video=dataclasses.replace(LIMITS.video, **video)))


def by_transformers(path: Path, bundle: Bundle, fps: float | None = None) -> tuple[Grid, np.ndarray, list[float]]:
    """Grid, patches and times by transformers' reader, sampler, `smart_resize` and `patchify`.

    Its resizing of frames needs torchvision; Pillow's stands in for it.
    """
    settings = json.loads((bundle.vision_dir / "video_preprocessor_config.json").read_text())
    processor = SimpleNamespace(fps=2, num_frames=None, min_frames=4, max_frames=768)
    frames, metadata = read_video_pyav(
        str(path), lambda metadata: Qwen3VLVideoProcessor.sample_frames(processor, metadata, fps=fps)
    )
    height, width = smart_resize(
        *frames.shape[:3],
        temporal_factor=2,
        factor=32,
        min_pixels=settings["size"]["shortest_edge"],
        max_pixels=settings["size"]["longest_edge"],
    )
    resized = [np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC)) for frame in frames]
    pixels = torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).float()
    # Qwen3VLVideoProcessor.rescale_and_normalize, which folds the scale of 1/255 into mean and deviation.
    pixels = (pixels - 0.5 * 255.0) / (0.5 * 255.0)
    patches, t, h, w = Qwen3VLVideoProcessor.patchify(None, pixels[None], 16, 2, 2)
    times = Qwen3VLProcessor._calculate_timestamps(None, metadata.frames_indices, metadata.fps, 2)
    return Grid(t, h, w), patches[0].numpy(), times


@pytest.mark.parametrize("count", [1, 2, 3, 7, 30, 45])
@pytest.mark.parametrize("fps", [None, 0.5, 5.0])
def test_patches_equal_transformers(
    count: int, fps: float | None, bundle: Bundle, preprocessor: Preprocessor, tmp_path: Path
) -> None:
    """Frames, grid, patches and times of an MP4 are transformers', for even and odd numbers of frames."""
    path = tmp_path / "clip.mp4"
    data = write_clip(path, noises(count))
    medium = preprocessor.prepare("video", data, Options(fps=fps))
    if count == 1:  # transformers refuses it
        assert (medium.grid.t, medium.timestamps) == (1, (0.0,))
        return
    grid, patches, times = by_transformers(path, bundle, fps)
    assert medium.grid == grid
    assert list(medium.timestamps) == times
    assert np.array_equal(medium.pixel_values(), patches)


@pytest.mark.parametrize("ending", ["mp4", "mov", "mkv", "webm", "avi"])
def test_containers(ending: str, preprocessor: Preprocessor, tmp_path: Path) -> None:
    """Every named container is read, also those that do not tell how many frames they hold."""
    medium = preprocessor.prepare("video", write_clip(tmp_path / f"clip.{ending}", noises(20)), Options())
    assert medium.grid.t == 2
    assert list(medium.timestamps) == pytest.approx([0.3, 1.6], abs=0.01)


def test_sampled_frames_are_the_right_ones(preprocessor: Preprocessor) -> None:
    """The pixels of each patch are those of the frames that were asked for, told by their grey."""
    greys = [Image.new("RGB", (96, 64), (8 * i,) * 3) for i in range(30)]
    medium = preprocessor.prepare("video", pictures.video(greys, 10), Options())  # lossless
    # int(30 / 10 * 2) = 6 frames of 30
    seen = medium.patches.reshape(3, -1, 3, 2, 16, 16)
    expected = np.linspace(0, 29, 6).round().astype(int).reshape(3, 2) * 8
    assert np.array_equal(seen[:, 0, 0, :, 0, 0], expected)
    assert all(np.ptp(seen[t, :, :, f]) == 0 for t in range(3) for f in range(2))


def test_options(preprocessor: Preprocessor, tmp_path: Path) -> None:
    """Density, numbers of frames and volume are what the caller asks for."""
    data = write_clip(tmp_path / "clip.mp4", noises(40, 160, 160))
    assert preprocessor.prepare("video", data, Options(fps=4.0)).grid.t == 8
    assert preprocessor.prepare("video", data, Options(max_frames=2)).grid.t == 1
    assert preprocessor.prepare("video", data, Options(min_frames=20)).grid.t == 10
    small = preprocessor.prepare("video", data, Options(max_video_pixels=8 * 64 * 64))
    assert small.grid == Grid(4, 4, 4)


def test_variable_frame_rate(bundle: Bundle, preprocessor: Preprocessor, tmp_path: Path) -> None:
    """Where frames come at odd times, the average rate counts, as in transformers."""
    path = tmp_path / "clip.mp4"
    times = [i + i * i // 8 for i in range(24)]
    data = write_clip(path, noises(24), times=times)
    grid, patches, expected = by_transformers(path, bundle)
    medium = preprocessor.prepare("video", data, Options())
    assert medium.grid == grid
    assert list(medium.timestamps) == expected
    assert np.array_equal(medium.pixel_values(), patches)


def recording(container: str, times: list[int], *, live: bool = False) -> bytes:
    """A recording whose frames come when something moves, as browsers write it.

    Args:
        container: FFmpeg's name.
        times: Of each frame, in milliseconds.
        live: Write no duration.
    """
    out = io.BytesIO()
    with av.open(out, "w", format=container, options={"live": "1"} if live else {}) as target:
        stream: Any = target.add_stream("libvpx" if container == "webm" else "libx264", rate=1000)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for time, image in zip(times, noises(len(times), 64, 64), strict=True):
            frame = av.VideoFrame.from_image(image)
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            target.mux(stream.encode(frame))
        target.mux(stream.encode(None))
    return out.getvalue()


def without_rate(webm: bytes) -> bytes:
    """Matroska's DefaultDuration becomes a Void element of the same length, as browsers leave it out."""
    data = bytearray(webm)
    at = data.find(b"\x23\xe3\x83")
    total = 4 + (data[at + 3] & 0x7F)
    data[at], data[at + 1], data[at + 2 : at + total] = 0xEC, 0x80 | (total - 2), bytes(total - 2)
    return bytes(data)


UNEVEN = [i * 333 + (37 * i * i) % 211 for i in range(30)]
BURST = [0, *(8000 + i * 33 for i in range(19))]


@pytest.mark.parametrize(
    ("data", "times", "frames"),
    [
        (recording("webm", UNEVEN), UNEVEN, 20),
        (without_rate(recording("webm", BURST, live=True)), BURST, 18),
        (recording("mp4", BURST), BURST, 18),
    ],
    ids=["1000 frames a second", "no rate", "a rate that fits nothing"],
)
def test_recordings(data: bytes, times: list[int], frames: int, preprocessor: Preprocessor) -> None:
    """Where the header's rate fits neither duration nor frames, each frame has the time at which it is shown."""
    medium = preprocessor.prepare("video", data, Options())
    assert len(medium.frame_times) == frames
    indices = np.linspace(0, len(times) - 1, frames).round().astype(int)
    assert list(medium.frame_times) == pytest.approx([times[index] / 1000 for index in indices], abs=0.002)
    assert medium.timestamps[-1] == pytest.approx(sum(medium.frame_times[-2:]) / 2)


def test_a_duration_that_lies(preprocessor: Preprocessor, tmp_path: Path) -> None:
    """An MP4 whose header has a thirtieth of its duration is sampled like the same clip with the right one."""
    data = bytearray(write_clip(tmp_path / "clip.mp4", noises(40)))
    at = data.find(b"mdhd") + 20
    data[at : at + 4] = (int.from_bytes(data[at : at + 4]) // 30).to_bytes(4)
    medium = preprocessor.prepare("video", bytes(data), Options())
    assert list(medium.frame_times) == pytest.approx(np.linspace(0, 39, 8).round() / 10)


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_rotation(rotation: int, preprocessor: Preprocessor, tmp_path: Path) -> None:
    """A video taken with a telephone on its side is looked at upright."""
    frame = Image.new("RGB", (128, 64), (0, 0, 0))
    frame.paste((255, 255, 255), (0, 0, 128, 16))  # a white edge at the top of the stored picture
    data = write_clip(tmp_path / "clip.mp4", [frame] * 4, rotation=rotation)
    medium = preprocessor.prepare("video", data, Options())
    upright = medium.grid.h > medium.grid.w
    assert upright == (rotation in (90, 270))
    merged = medium.patches[: medium.grid.h * medium.grid.w, :, 0].mean(axis=(1, 2, 3))
    blocks = merged.reshape(medium.grid.h // 2, medium.grid.w // 2, 4).mean(-1)
    edges = {"top": blocks[0], "bottom": blocks[-1], "left": blocks[:, 0], "right": blocks[:, -1]}
    # As FFmpeg's own players turn it: by the angle, against the clock.
    expected = {90: "left", 180: "bottom", 270: "right"}[rotation]
    assert max(edges, key=lambda edge: float(edges[edge].mean())) == expected


def test_counts_that_lie(preprocessor: Preprocessor, tmp_path: Path) -> None:
    """A container that announces more frames than it holds, by a few, is sampled by what it holds."""
    data = write_clip(tmp_path / "clip.avi", noises(20))
    announced = data.find(b"strh") + 8 + 32  # dwLength of the stream's header
    assert int.from_bytes(data[announced : announced + 4], "little") == 20
    lying = data[:announced] + (24).to_bytes(4, "little") + data[announced + 4 :]
    with av.open(io.BytesIO(lying)) as container:
        assert container.streams.video[0].frames == 24
    assert (
        preprocessor.prepare("video", lying, Options()).timestamps
        == preprocessor.prepare("video", data, Options()).timestamps
    )


def test_audio_only(preprocessor: Preprocessor, tmp_path: Path) -> None:
    """Sound without pictures has its own reason."""
    error = refusal(preprocessor, write_sound(tmp_path / "sound.mp4"))
    assert (error.code, error.reason) == (Code.INVALID_ARGUMENT, "VIDEO_WITHOUT_PICTURES")


def test_cut_off(preprocessor: Preprocessor, tmp_path: Path) -> None:
    """An MP4 that breaks off is refused, with its index at the end or at the beginning."""
    frames = noises(60)
    last = write_clip(tmp_path / "last.mp4", frames)
    error = refusal(preprocessor, last[: len(last) * 6 // 10])
    assert (error.code, error.reason) == (Code.INVALID_ARGUMENT, "VIDEO_UNREADABLE")
    first = write_clip(tmp_path / "first.mp4", frames, index_first=True)
    error = refusal(preprocessor, first[: len(first) * 6 // 10])
    assert (error.code, error.reason) == (Code.INVALID_ARGUMENT, "VIDEO_TRUNCATED")


@pytest.mark.parametrize(
    "data",
    [
        b"This is a text file, whatever its name.",
        bytes(4096),
        b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + bytes(200),
        pictures.png(pictures.noise(64, 64)),
    ],
    ids=["text", "zeros", "empty mp4", "png"],
)
def test_what_is_no_video(data: bytes, preprocessor: Preprocessor) -> None:
    """What is no video is refused as such."""
    error = refusal(preprocessor, data)
    assert (error.code, error.reason) == (Code.INVALID_ARGUMENT, "VIDEO_UNREADABLE")


def test_playlists_open_nothing(preprocessor: Preprocessor, tmp_path: Path) -> None:
    """A playlist that names another file is refused, and the file is not read."""
    write_clip(tmp_path / "secret.mp4", noises(4))
    for playlist in (
        f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{tmp_path}/secret.mp4\n#EXT-X-ENDLIST\n",
        f"ffconcat version 1.0\nfile {tmp_path}/secret.mp4\n",
    ):
        assert refusal(preprocessor, playlist.encode()).reason == "VIDEO_UNREADABLE"


def test_too_long(bundle: Bundle, tmp_path: Path) -> None:
    """A video over the limit of seconds is refused by its header where that tells, and by its frames where not."""
    short = limited(bundle, seconds=1.5)
    for ending in ("mp4", "mkv", "webm"):
        error = refusal(short, write_clip(tmp_path / f"clip.{ending}", noises(20)))
        assert (error.code, error.reason) == (Code.RESOURCE_EXHAUSTED, "VIDEO_TOO_LONG")
        assert "max_video_seconds" in error.message


def test_too_many_frames(bundle: Bundle, tmp_path: Path) -> None:
    """The frames of a file are limited, whether or not its header counts them, and so are the sampled ones."""
    for ending in ("mp4", "webm"):
        error = refusal(limited(bundle, frames=15), write_clip(tmp_path / f"clip.{ending}", noises(20)))
        assert (error.code, error.reason) == (Code.RESOURCE_EXHAUSTED, "VIDEO_TOO_MANY_FRAMES")
        assert error.metadata["limit"] == "15"
    error = refusal(limited(bundle, sampled=6), (tmp_path / "clip.mp4").read_bytes(), fps=10.0)
    assert (error.code, error.reason) == (Code.RESOURCE_EXHAUSTED, "VIDEO_TOO_MANY_FRAMES")
    assert "max_sampled_frames" in error.message


def test_too_large(bundle: Bundle, tmp_path: Path) -> None:
    """So are the pixels of a frame."""
    for ending in ("mp4", "webm"):
        error = refusal(limited(bundle, pixels=6_000), write_clip(tmp_path / f"clip.{ending}", noises(4)))
        assert (error.code, error.reason) == (Code.RESOURCE_EXHAUSTED, "VIDEO_TOO_LARGE")
        assert "96 x 64" in error.message


def test_too_many_patches(bundle: Bundle, tmp_path: Path) -> None:
    """And the patches that it becomes."""
    strict = Preprocessor(bundle, dataclasses.replace(LIMITS, patches=16))
    error = refusal(strict, write_clip(tmp_path / "clip.mp4", noises(20)))
    assert (error.code, error.reason) == (Code.RESOURCE_EXHAUSTED, "VIDEO_TOO_MANY_PATCHES")
    assert "max_video_pixels" in error.message


def test_aspect_ratio(preprocessor: Preprocessor) -> None:
    """A video of 300:1 is refused."""
    error = refusal(preprocessor, pictures.video([Image.new("RGB", (9_600, 32))] * 4, 10))
    assert (error.code, error.reason) == (Code.INVALID_ARGUMENT, "VIDEO_ASPECT_RATIO")


def test_damage_never_surprises(preprocessor: Preprocessor, tmp_path: Path) -> None:
    """A file with random bytes changed is decoded or refused; nothing else comes out."""
    whole = write_clip(tmp_path / "clip.mp4", noises(12))
    rng = np.random.default_rng(0)
    outcomes: list[str] = []
    for _ in range(60):
        data = bytearray(whole)
        for place in rng.integers(0, len(data), 40):
            data[place] = rng.integers(0, 256)
        try:
            medium = preprocessor.prepare("video", bytes(data), Options())
        except ServiceError as error:
            outcomes.append(error.reason)
        else:
            outcomes.append(medium.kind)
    assert {outcome.partition("_")[0] for outcome in outcomes} == {"VIDEO", "video"}


def test_cancelling_stops_decoding(preprocessor: Preprocessor, tmp_path: Path) -> None:
    """Once nobody wants a video any more, no further frame is decoded."""
    asked: list[None] = []

    def cancelled() -> bool:
        asked.append(None)
        return len(asked) == 3

    with pytest.raises(WorkCancelledError):
        preprocessor.prepare("video", write_clip(tmp_path / "clip.mp4", noises(30)), Options(), cancelled)
    assert len(asked) == 3
