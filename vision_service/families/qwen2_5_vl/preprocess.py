"""Preprocesses media for the encoder, as transformers' own processors do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from serving.media import MAX_PIXELS
from vision_service.families.qwen import preprocess
from vision_service.families.qwen.preprocess import Sampling
from vision_service.families.qwen2_5_vl.sampling import patch_times, sample_indices
from vision_service.media import Kind, Options, Range

_SHARE_OF_CONTEXT = 0.9  # of `max_video_tokens`, as in Qwen2VLVideoProcessor.resize


class VideoDefaults:
    """The attributes of transformers' `Qwen2VLVideoProcessor`, whose module needs torchvision, and Qwen's own fps."""

    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    resample = 3
    size: ClassVar = {"shortest_edge": 128 * 28 * 28, "longest_edge": 28 * 28 * 768}
    image_mean = Qwen2VLImageProcessorPil.image_mean
    image_std = Qwen2VLImageProcessorPil.image_std
    rescale_factor = 1 / 255
    patch_size = 14
    temporal_patch_size = 2
    merge_size = 2
    fps = 2
    min_frames = 4
    max_frames = 768
    cap_pixels_per_frame = None
    max_video_tokens = 128_000


class Preprocessor(preprocess.Preprocessor):
    """Converts files to patches. The published bounds of a video's pixels are for each of its frames."""

    DEFAULTS: ClassVar[Mapping[Kind, Any]] = {"image": Qwen2VLImageProcessorPil, "video": VideoDefaults}

    def _volumes(self) -> Range:
        low, high = self._video.pixels
        volume = high * self._video.frames.high
        if (total := self._total_pixels()) is not None:
            volume = min(volume, total)
        return Range(low * self._temporal, min(volume, MAX_PIXELS))

    def _sample(self, total: int, fps: float, sampling: Sampling) -> list[int]:
        return sample_indices(total, fps, sampling, self._temporal)

    def _frame_size(self, count: int, height: int, width: int, options: Options) -> tuple[int, int]:
        factor = self._patch * self._merge
        low, high = self._video.pixels
        if (total := self._total_pixels()) is not None:
            high = max(min(high, total // count), int(low * 1.05))
        # A request's bounds are for all frames; of an upper one each frame has its share, and at most its own bound.
        least, greatest = options.min_video_pixels, options.max_video_pixels
        if greatest is not None:
            high = min(high, max(1, greatest // count))
            low = low if low <= high else min(high, factor**2)
        if least is not None:
            low = -(-least // count)
            high = max(low, high)
        size: tuple[int, int] = smart_resize(height, width, factor=factor, min_pixels=low, max_pixels=high)
        return size

    def _patch_times(self, times: Sequence[float], total: int, fps: float) -> tuple[float, ...]:
        return patch_times(len(times), total, fps, self._temporal)

    def _total_pixels(self) -> int | None:
        """Most pixels of all frames, where the checkpoint bounds them by the context."""
        if self._video.video_tokens is None:
            return None
        return int(self._video.video_tokens * (self._patch * self._merge) ** 2 * _SHARE_OF_CONTEXT) * self._temporal
