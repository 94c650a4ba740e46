"""The frames of a video, their times and their size are those that transformers takes."""

from __future__ import annotations

import inspect
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.video_utils import VideoMetadata

from serving.bundle import Bundle
from tests.pictures import noise, video
from tests.vision_service.conftest import LIMITS
from tests.vision_service.families.qwen2_5_vl.torchvision_free import video_processor
from vision_service.families.qwen.preprocess import Sampling
from vision_service.families.qwen2_5_vl.preprocess import Preprocessor, VideoDefaults
from vision_service.families.qwen2_5_vl.sampling import patch_times, sample_indices
from vision_service.media import Options, Range

PROCESSOR = video_processor()


@settings(deadline=None, max_examples=300)
@given(
    total=st.integers(2, 5_000),
    video_fps=st.one_of(st.sampled_from([10.0, 24.0, 25.0, 30000 / 1001, 30.0, 60.0]), st.floats(0.1, 240.0)),
    fps=st.one_of(st.sampled_from([0.5, 1.0, 2.0, 3.0]), st.floats(0.01, 60.0)),
    low=st.integers(2, 64),
    more=st.integers(0, 800),
)
def test_indices_and_times_equal_transformers(total: int, video_fps: float, fps: float, low: int, more: int) -> None:
    """Of any video, at any density, the same frames, and the same time from one patch to the next."""
    processor = SimpleNamespace(fps=2, num_frames=None, temporal_patch_size=2, min_frames=low, max_frames=low + more)
    metadata = VideoMetadata(total_num_frames=total, fps=video_fps)
    expected = PROCESSOR.sample_frames(processor, metadata, fps=fps).tolist()
    indices = sample_indices(total, video_fps, Sampling(fps, Range(low, low + more)), 2)
    # Rounding may give transformers an index too many, which lies behind the video.
    assert indices == [index for index in expected if index < total]
    assert len(expected) - len(indices) <= 1
    assert len(indices) % 2 == 0
    metadata.frames_indices = indices
    times = patch_times(len(indices), total, video_fps, 2)
    assert len(times) == len(indices) // 2
    assert times[:2] == (0.0, 2 / metadata.sampled_fps)[: len(times)]


@pytest.mark.parametrize(
    ("total", "frames", "expected"),
    [(1, Range(4, 768), [0]), (3, Range(4, 768), [0, 1]), (9, Range(1, 1), [0]), (40, Range(1, 8), [0, 1])],
)
def test_videos_that_fill_no_patch(total: int, frames: Range, expected: list[int]) -> None:
    """Where transformers fails for want of frames, there are those that the file has and the request allows."""
    assert sample_indices(total, 30.0, Sampling(0.5, frames), 2) == expected


def test_the_defaults_are_transformers() -> None:
    """What a settings file leaves out is as the class has it; the rate is Qwen's own, since the class has none."""
    names = [name for name, value in inspect.getmembers(VideoDefaults) if not name.startswith("_") and name != "fps"]
    for name in names:
        value = getattr(PROCESSOR, name)
        assert getattr(VideoDefaults, name) == (int(value) if name == "resample" else value), name


@pytest.mark.parametrize("capped", [False, True])
@pytest.mark.parametrize("size", [(96, 64), (640, 360), (30, 900)])
@pytest.mark.parametrize("count", [2, 4, 9])
def test_the_size_of_frames_equals_transformers(
    count: int, size: tuple[int, int], capped: bool, qwen2_5_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frames have the bounds of a frame, and their share of the context where the settings turn that on."""
    preprocessor = Preprocessor(qwen2_5_bundle, LIMITS)
    stored = preprocessor._video
    tokens = 2_000 if capped else None
    monkeypatch.setattr(preprocessor, "_video", type(stored)(**{**vars(stored), "video_tokens": tokens}))
    seen: dict[str, int] = {}
    width, height = size
    shape = SimpleNamespace(shape=(1, count, 3, height, width))
    low, high = stored.pixels
    processor = SimpleNamespace(max_video_tokens=tokens)
    base = inspect.getmro(PROCESSOR)[1]
    monkeypatch.setattr(base, "resize", lambda self, image, size, resample: seen.update(h=size.height, w=size.width))
    PROCESSOR.resize(
        _super(processor),
        shape,
        SimpleNamespace(shortest_edge=low, longest_edge=high),
        3,
        28,
        cap_pixels_per_frame=capped,
    )
    assert preprocessor._frame_size(count, height, width, Options()) == (seen["h"], seen["w"])


def _super(attributes: SimpleNamespace) -> object:
    """An instance of the class that was not initialized, with these attributes."""
    processor = object.__new__(PROCESSOR)
    processor.__dict__.update(vars(attributes))
    return processor


def test_a_budget_is_for_all_frames(qwen2_5_bundle: Bundle, tmp_path: Path) -> None:
    """A request's bounds count the pixels of all frames; the published ones those of a frame."""
    preprocessor = Preprocessor(qwen2_5_bundle, LIMITS)
    film = video(tuple(noise(112, 112, seed) for seed in range(8)), 4)
    grids = [
        preprocessor.prepare("video", film, options).grid
        for options in (Options(), Options(max_video_pixels=4 * 56 * 56), Options(min_video_pixels=4 * 140 * 140))
    ]
    assert grids == [(2, 8, 8), (2, 4, 4), (2, 10, 10)]
    published = preprocessor.published
    assert (published.min_video_pixels, published.max_video_pixels) == (2 * 56 * 56, 768 * 112 * 112)
    assert preprocessor.prepare("video", film, Options(max_video_pixels=published.max_video_pixels)).grid == grids[0]
