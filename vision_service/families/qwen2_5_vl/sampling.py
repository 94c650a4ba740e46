"""Sampling of a video's frames and their times, by transformers' rules for Qwen2.5-VL.

The rules are in methods of `Qwen2VLVideoProcessor` (frames) and `Qwen2_5_VLProcessor` (times), whose module needs
torchvision; the tests compare these functions with those methods.
"""

from __future__ import annotations

import math

import torch

from vision_service.families.qwen.preprocess import Sampling


def sample_indices(total: int, video_fps: float, sampling: Sampling, temporal_patch_size: int) -> list[int]:
    """The indices of the sampled frames, at equal distances from the first on: a whole number of temporal patches.

    Args:
        total: Frames of the video, at least 1.
        video_fps: Its frames per second.
        sampling: The density.
        temporal_patch_size: Frames of a patch.

    Returns:
        Indices, ascending. Where transformers fails, since not even one patch can be filled, the frames that there are.
    """
    fewest, most = sampling.frames
    most = min(most, total) // temporal_patch_size * temporal_patch_size
    wanted = min(max(total / video_fps * sampling.fps, fewest), most)
    count = math.floor(wanted / temporal_patch_size) * temporal_patch_size
    if count == 0:
        return list(range(min(total, sampling.frames.high, temporal_patch_size)))
    # Rounding may give one index too many, with which transformers fails.
    indices: list[int] = torch.arange(0, total, total / count).int().tolist()
    return indices[:count]


def patch_times(sampled: int, total: int, video_fps: float, temporal_patch_size: int) -> tuple[float, ...]:
    """The time at which each temporal patch begins, in seconds, if frames are at equal distances.

    The second of them is transformers' `second_per_grid_ts`: positions in the prompt are computed from it.

    Args:
        sampled: Frames that were sampled.
        total: Frames of the video.
        video_fps: Its frames per second.
        temporal_patch_size: Frames of a patch.
    """
    seconds = temporal_patch_size / (sampled / total * video_fps)
    return tuple(index * seconds for index in range(-(-sampled // temporal_patch_size)))
