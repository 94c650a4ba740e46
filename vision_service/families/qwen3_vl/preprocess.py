"""Preprocesses media for the encoder, as transformers' own processors do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize as video_size

from vision_service.families.qwen import preprocess
from vision_service.families.qwen.preprocess import Sampling
from vision_service.families.qwen3_vl.sampling import patch_times, sample_indices
from vision_service.media import Kind, Options, Range


class Preprocessor(preprocess.Preprocessor):
    """Converts files to patches. The bounds of a video's pixels are for all its frames together."""

    DEFAULTS: ClassVar[Mapping[Kind, Any]] = {"image": Qwen2VLImageProcessorPil, "video": Qwen3VLVideoProcessor}

    def _volumes(self) -> Range:
        return self._video.pixels

    def _sample(self, total: int, fps: float, sampling: Sampling) -> list[int]:
        return sample_indices(total, fps, sampling)

    def _frame_size(self, count: int, height: int, width: int, options: Options) -> tuple[int, int]:
        pixels = self._video.pixels.override(options.min_video_pixels, options.max_video_pixels)
        factor = self._patch * self._merge
        greatest = pixels.high
        if self._video.video_tokens is not None:
            # As Qwen3VLVideoProcessor.resize, where the limit is for a frame.
            cap = self._video.video_tokens * factor**2
            greatest = count * max(min(cap, pixels.high // count), int(pixels.low * 1.05))
        size: tuple[int, int] = video_size(
            # transformers refuses a video of a single frame; here the frame is repeated to fill a temporal patch.
            max(count, self._temporal),
            height,
            width,
            temporal_factor=self._temporal,
            factor=factor,
            min_pixels=pixels.low,
            max_pixels=greatest,
        )
        return size

    def _patch_times(self, times: Sequence[float], total: int, fps: float) -> tuple[float, ...]:
        del total, fps  # the prompt has the times of the frames themselves
        return patch_times(times, self._temporal)
