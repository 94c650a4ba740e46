"""The tokens of images and videos in a prompt of Qwen2.5-VL: one run of placeholders each, as in Qwen2_5_VLProcessor.

The times of a video are in no text. They reach the model as positions, computed from the time that passes from one
temporal patch to the next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from decoder_service.chat import Layout, MediaKind
from decoder_service.families.family import Encode
from decoder_service.families.qwen.prompt_layout import QwenVL, image_grids, token_ids
from decoder_service.families.with_media import Run
from serving.bundle import Bundle, TokenIds
from serving.families import Qwen25VLVision


class Qwen25VL(QwenVL):
    """The family of Qwen2.5-VL; see `Family`.

    Args:
        tokens: Ids of the control tokens.
        merge_size: Patches along one edge of a token.
        tokens_per_second: Steps of a video's time positions in a second.
    """

    def __init__(self, tokens: TokenIds, *, merge_size: int, tokens_per_second: int) -> None:
        super().__init__(tokens, merge_size=merge_size)
        self._tokens_per_second = tokens_per_second

    @classmethod
    def of(cls, bundle: Bundle) -> Qwen25VL:
        """Make the family of a bundle's model."""
        vision = bundle.vision
        if not isinstance(vision, Qwen25VLVision):
            raise TypeError(f"a bundle of {bundle.model.family} has the encoder of another family")
        return cls(token_ids(bundle), merge_size=vision.spatial_merge_size, tokens_per_second=vision.tokens_per_second)

    def _runs(self, layout: Layout, encode: Encode) -> list[Run]:
        del encode  # nothing is inserted
        t, rows, columns = self._merged(layout)
        steps: tuple[int, ...] = (0,)
        if layout.medium.kind is MediaKind.VIDEO:
            steps = time_steps(t, _seconds(layout), self._tokens_per_second)
        return [Run((rows, columns, *steps), t * rows * columns)]

    def _inputs(self, layouts: Sequence[Layout]) -> Mapping[str, NDArray[np.int64]] | None:
        # onnxruntime-genai puts the text after a video elsewhere (decision 45).
        videos = any(layout.medium.kind is MediaKind.VIDEO for layout in layouts)
        return None if videos else image_grids(layouts)


def time_steps(frames: int, seconds: float, tokens_per_second: int) -> tuple[int, ...]:
    """The time positions of a video's temporal patches, from its first.

    Args:
        frames: Number of temporal patches.
        seconds: From one to the next.
        tokens_per_second: Steps in a second.
    """
    # In the type in which transformers' processor gives `second_per_grid_ts`: a product may fall just below a whole.
    interval = np.float32(tokens_per_second) * np.float32(seconds)
    steps = (np.arange(frames).astype(np.float32) * interval).astype(np.int64)
    return tuple(steps.tolist())


def _seconds(layout: Layout) -> float:
    """Seconds from one temporal patch of a video to the next: the first begins at 0, and all are equally long."""
    times = layout.timestamps
    if len(times) != layout.grid[0]:
        raise ValueError(f"there are {len(times)} times for a grid of {layout.grid[0]} frames")
    return times[1] if len(times) > 1 else 0.0
