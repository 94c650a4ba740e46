"""The tokens of images in a prompt of Phi-4-multimodal: one run of placeholders each, at plain positions.

An image has a token for every 2 x 2 patches of its crops and of its overview, one at the end of each row of tokens, and
one between the two, as in transformers' `Phi4MultimodalImageProcessor`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from decoder_service.chat import Layout, MediaKind
from decoder_service.engine import Span
from decoder_service.families.family import Encode
from decoder_service.families.with_media import Run, WithMedia
from serving.bundle import Bundle
from serving.families import ImageTokens, Phi4MultimodalVision


class Phi4Multimodal(WithMedia):
    """The family of Phi-4-multimodal; see `Family`.

    Args:
        tokens: Ids of the control tokens.
        overview: Tokens along an edge of the overview, which has the size of a crop.
    """

    # Its own processor puts the placeholder into the text, in the place of `<|image_1|>`.
    inline_placeholders = True

    def __init__(self, tokens: ImageTokens, *, overview: int) -> None:
        super().__init__(tokens)
        self._overview = overview

    @classmethod
    def of(cls, bundle: Bundle) -> Phi4Multimodal:
        """Make the family of a bundle's model."""
        vision = bundle.vision
        if not isinstance(vision, Phi4MultimodalVision):
            raise TypeError(f"a bundle of {bundle.model.family} has the encoder of another family")
        return cls(bundle.media_tokens, overview=-(-(vision.crop_size // vision.patch_size) // 2))

    @property
    def placeholders(self) -> Mapping[int, MediaKind]:
        """The placeholder of an image, of which the prompt has one for each."""
        return {self._image: MediaKind.IMAGE}

    def token_count(self, grid: tuple[int, int, int]) -> int:
        """Number of feature rows of an image; see `Family.token_count`."""
        t, h, w = grid
        if min(grid) < 1 or t != 1 or h % 2 or w % 2:
            raise ValueError(f"is {t}x{h}x{w}; t must be 1, and h and w multiples of 2, none 0")
        return h // 2 * (w // 2 + 1) + 1 + self._overview * (self._overview + 1)

    def _runs(self, layout: Layout, encode: Encode) -> list[Run]:
        del encode  # nothing is inserted
        return [Run((), self.token_count(layout.grid))]

    def _positions(self, length: int, media: Sequence[Span]) -> NDArray[np.int64]:
        del media  # its tokens have positions like any others
        return np.arange(length + 1, dtype=np.int64)[None]

    def _inputs(self, layouts: Sequence[Layout]) -> None:
        del layouts  # onnxruntime-genai has no pipeline for these graphs
