"""The tokens of images and videos in a prompt of Qwen's vision families.

A medium's placeholder becomes one `<|image_pad|>` or `<|video_pad|>` for each feature row. How a video is divided into
runs of them, and what stands between, is the family's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from decoder_service.chat import Layout, MediaKind
from decoder_service.engine import Span
from decoder_service.families.qwen.positions import mrope_positions
from decoder_service.families.with_media import WithMedia
from serving.bundle import Bundle, TokenIds


class QwenVL(WithMedia):
    """A family; see `Family`. The shape of a run is as `mrope_positions` takes it.

    Args:
        tokens: Ids of the control tokens.
        merge_size: Patches along one edge of a token.
    """

    def __init__(self, tokens: TokenIds, *, merge_size: int) -> None:
        super().__init__(tokens)
        self._tokens = tokens
        self._merge_size = merge_size

    @property
    def placeholders(self) -> Mapping[int, MediaKind]:
        """The placeholder tokens, of which the chat template writes one for each medium."""
        return {self._tokens.image: MediaKind.IMAGE, self._tokens.video: MediaKind.VIDEO}

    def token_count(self, grid: tuple[int, int, int]) -> int:
        """Number of feature rows of a medium; see `Family.token_count`."""
        t, h, w = grid
        if min(grid) < 1 or h % self._merge_size or w % self._merge_size:
            raise ValueError(f"is {t}x{h}x{w}; h and w must be multiples of {self._merge_size}, none 0")
        return t * h * w // self._merge_size**2

    def _positions(self, length: int, media: Sequence[Span]) -> NDArray[np.int64]:
        return mrope_positions(length, media)

    def _merged(self, layout: Layout) -> tuple[int, int, int]:
        """A medium's frames, and rows and columns of its tokens."""
        t, h, w = layout.grid
        return t, h // self._merge_size, w // self._merge_size


def token_ids(bundle: Bundle) -> TokenIds:
    """Ids of the control tokens of a bundle of these families."""
    tokens = bundle.media_tokens
    if not isinstance(tokens, TokenIds):
        raise TypeError(f"a bundle of {bundle.model.family} has the tokens of another family")
    return tokens


def image_grids(layouts: Sequence[Layout]) -> Mapping[str, NDArray[np.int64]]:
    """Inputs of onnxruntime-genai, by its names: each frame is an image."""
    grids = [(1, h, w) for t, h, w in (layout.grid for layout in layouts) for _ in range(t)]
    media_tokens = sum(layout.token_count for layout in layouts)
    return {
        "image_grid_thw": np.array(grids, np.int64).reshape(-1, 3),
        "num_image_tokens": np.array([media_tokens], np.int64),
    }
