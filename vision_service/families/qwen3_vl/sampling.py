"""Sampling of a video's frames and their times, by transformers' rules for Qwen3-VL.

The rules are in methods of `Qwen3VLVideoProcessor` (frames) and `Qwen3VLProcessor` (times), whose classes need
torchvision; the tests compare these functions with those methods.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vision_service.families.qwen.preprocess import Sampling


def sample_indices(total: int, video_fps: float, sampling: Sampling) -> list[int]:
    """The indices of the sampled frames, evenly spread from the first to the last.

    Args:
        total: Frames of the video, at least 1.
        video_fps: Its frames per second.
        sampling: The density.

    Returns:
        Indices, ascending.
    """
    wanted = int(total / video_fps * sampling.fps)
    count = min(max(wanted, sampling.frames.low), sampling.frames.high, total)
    return [int(index) for index in np.linspace(0, total - 1, count).round()]


def patch_times(times: Sequence[float], temporal_patch_size: int) -> tuple[float, ...]:
    """The time of each temporal patch: midway between its first and its last frame, in seconds.

    Args:
        times: The times of the sampled frames in seconds; the last is repeated to fill the last patch.
        temporal_patch_size: Frames of a patch.
    """
    full = [*times, *[times[-1]] * (-len(times) % temporal_patch_size)]
    return tuple(
        (full[start] + full[start + temporal_patch_size - 1]) / 2 for start in range(0, len(full), temporal_patch_size)
    )
