"""The tokens of images and videos in a prompt of Qwen3-VL.

An image is one run of placeholders. A video becomes, for every temporal patch, its time as text and a run of
`<|video_pad|>` between `<|vision_start|>` and `<|vision_end|>`, as in Qwen3VLProcessor of transformers 5.23. For the
graphs every such frame is an image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from decoder_service.chat import Layout, MediaKind
from decoder_service.families.family import Encode
from decoder_service.families.qwen.prompt_layout import QwenVL, image_grids, token_ids
from decoder_service.families.with_media import Run
from serving.bundle import Bundle


class Qwen3VL(QwenVL):
    """The family of Qwen3-VL; see `Family`."""

    @classmethod
    def of(cls, bundle: Bundle) -> Qwen3VL:
        """Make the family of a bundle's model."""
        return cls(token_ids(bundle), merge_size=bundle.vision.spatial_merge_size)

    def _runs(self, layout: Layout, encode: Encode) -> list[Run]:
        t, rows, columns = self._merged(layout)
        shape = (rows, columns)
        if layout.medium.kind is MediaKind.IMAGE:
            return [Run(shape, rows * columns)]
        if t != len(layout.timestamps):
            raise ValueError(f"there are {len(layout.timestamps)} times for a grid of {t} frames")
        start, end = self._tokens.vision_start, self._tokens.vision_end
        return [
            Run(shape, rows * columns, before=(*encode(f"<{seconds:.1f} seconds>"), start), after=(end,))
            for seconds in layout.timestamps
        ]

    def _inputs(self, layouts: Sequence[Layout]) -> Mapping[str, NDArray[np.int64]]:
        return image_grids(layouts)
