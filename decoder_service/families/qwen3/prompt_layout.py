"""The tokens of a prompt of Qwen3, which takes text only.

The graph is the one of Qwen3-VL's language model: with equal positions in all three dimensions its rotation is the
plain one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from decoder_service.chat import Layout, MediaKind
from decoder_service.families.family import Encode, Prompt
from decoder_service.families.qwen.positions import mrope_positions
from decoder_service.families.qwen.prompt_layout import image_grids
from serving.bundle import Bundle

_NO_MEDIA = "this model takes text only"


class Qwen3:
    """The family of Qwen3; see `Family`."""

    inline_placeholders = False

    @classmethod
    def of(cls, bundle: Bundle) -> Qwen3:
        """Make the family of a bundle's model."""
        del bundle  # nothing depends on its sizes
        return cls()

    @property
    def placeholders(self) -> Mapping[int, MediaKind]:
        """None: the ids of image tokens, which the vocabulary has, are text like any other."""
        return {}

    def token_count(self, grid: tuple[int, int, int]) -> int:
        """Raises ValueError; see `Family.token_count`."""
        raise ValueError(f"is {grid}, and {_NO_MEDIA}")

    def length(self, layout: Layout, encode: Encode) -> int:
        """Raises ValueError; see `Family.length`."""
        raise ValueError(_NO_MEDIA)

    def lay_out(
        self, token_ids: Sequence[int], layouts: Sequence[Layout], encode: Encode, keys: Sequence[str] = ()
    ) -> Prompt:
        """Compute the position of each token; see `Family.lay_out`."""
        if layouts or keys:
            raise ValueError(f"there are {len(layouts)} layouts and {len(keys)} keys, and {_NO_MEDIA}")
        return Prompt(
            token_ids=tuple(token_ids),
            engine_token_ids=np.array(token_ids, np.int32),
            positions=mrope_positions(len(token_ids), ()),
            media=(),
            inputs=image_grids(()),
            media_tokens=0,
        )
