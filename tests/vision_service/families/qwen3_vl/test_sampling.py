"""The frames of a video and their times are those that transformers takes."""

from __future__ import annotations

from types import SimpleNamespace

from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor
from transformers.video_utils import VideoMetadata

from vision_service.families.qwen3_vl.sampling import Sampling, patch_times, sample_indices
from vision_service.media import Range


@settings(deadline=None, max_examples=300)
@given(
    total=st.integers(1, 5_000),
    video_fps=st.one_of(st.sampled_from([10.0, 24.0, 25.0, 30000 / 1001, 30.0, 60.0]), st.floats(0.1, 240.0)),
    fps=st.one_of(st.sampled_from([0.5, 1.0, 2.0, 3.0]), st.floats(0.01, 60.0)),
    low=st.integers(1, 64),
    more=st.integers(0, 800),
)
def test_indices_and_times_equal_transformers(total: int, video_fps: float, fps: float, low: int, more: int) -> None:
    """Of any video, at any density, the same frames at the same times."""
    processor = SimpleNamespace(fps=2, num_frames=None, min_frames=low, max_frames=low + more)
    metadata = VideoMetadata(total_num_frames=total, fps=video_fps)
    expected = Qwen3VLVideoProcessor.sample_frames(processor, metadata, fps=fps)
    indices = sample_indices(total, video_fps, Sampling(fps, Range(low, low + more)))
    assert indices == expected.tolist()
    assert indices == sorted(set(indices))
    times = Qwen3VLProcessor._calculate_timestamps(None, expected, video_fps, 2)
    assert list(patch_times([index / video_fps for index in indices], 2)) == times
