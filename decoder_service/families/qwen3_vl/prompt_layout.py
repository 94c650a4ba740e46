"""The tokens of images and videos in a prompt of Qwen3-VL.

An image becomes one `<|image_pad|>` for each feature row. A video becomes, for every temporal patch, its time as text
and a run of `<|video_pad|>` between `<|vision_start|>` and `<|vision_end|>`, as in Qwen3VLProcessor of transformers
5.23. For the graphs every such frame is an image.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from decoder_service.chat import Layout, MediaKind
from decoder_service.engine import Span
from decoder_service.families.family import Encode, Prompt
from decoder_service.families.qwen3_vl.positions import mrope_positions
from serving.bundle import Bundle, TokenIds


class Qwen3VL:
    """The family of Qwen3-VL; see `Family`.

    Args:
        tokens: Ids of the control tokens.
        merge_size: Patches along one edge of a token.
    """

    def __init__(self, tokens: TokenIds, *, merge_size: int) -> None:
        self._tokens = tokens
        self._merge_size = merge_size

    @classmethod
    def of(cls, bundle: Bundle) -> Qwen3VL:
        """Make the family of a bundle's model."""
        return cls(bundle.tokens, merge_size=bundle.vision.spatial_merge_size)

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

    def length(self, layout: Layout, encode: Encode) -> int:
        """Number of tokens that replace a medium's placeholder; see `Family.length`."""
        return layout.token_count + sum(len(before) + len(after) for before, after in self._frames(layout, encode))

    def lay_out(
        self, token_ids: Sequence[int], layouts: Sequence[Layout], encode: Encode, keys: Sequence[str] = ()
    ) -> Prompt:
        """Replace each placeholder by the medium's tokens, and compute positions; see `Family.lay_out`."""
        placeholders = self.placeholders
        places = sum(token in placeholders for token in token_ids)
        if places != len(layouts) or (keys and len(keys) != places):
            raise ValueError(f"there are {len(layouts)} layouts and {len(keys)} keys for {places} media")
        ids: list[int] = []
        grids: list[tuple[int, int, int]] = []
        media: list[Span] = []
        waiting = zip(layouts, keys or itertools.repeat(""), strict=False)
        for token in token_ids:
            if token not in placeholders:
                ids.append(token)
                continue
            layout, key = next(waiting)
            t, h, w = layout.grid
            shape = (h // self._merge_size, w // self._merge_size)
            rows = shape[0] * shape[1]
            frames = self._frames(layout, encode)
            if rows == 0 or t != len(frames) or t * rows != layout.token_count:
                raise ValueError(f"a grid of {t}x{h}x{w} has not {layout.token_count} tokens in {len(frames)} frames")
            for number, (before, after) in enumerate(frames):
                ids += before
                # Equal keys mean equal features and equal positions.
                name = f"{key}:{h}x{w}:{number}" if key else ""
                media.append(Span(len(ids), len(ids) + rows, shape, name))
                ids.extend(itertools.repeat(token, rows))
                ids += after
                grids.append((1, h, w))
        engine_ids = np.array(ids, np.int32)
        for span in media:
            engine_ids[span.start : span.stop] = self._tokens.image
        media_tokens = sum(layout.token_count for layout in layouts)
        return Prompt(
            token_ids=tuple(ids),
            engine_token_ids=engine_ids,
            positions=mrope_positions(len(ids), media),
            media=tuple(media),
            inputs={
                "image_grid_thw": np.array(grids, np.int64).reshape(-1, 3),
                "num_image_tokens": np.array([media_tokens], np.int64),
            },
            media_tokens=media_tokens,
        )

    def _frames(self, layout: Layout, encode: Encode) -> list[tuple[list[int], list[int]]]:
        """The tokens before and after the feature rows of each frame. An image is one frame."""
        if layout.medium.kind is MediaKind.IMAGE:
            return [([], [])]
        start, end = self._tokens.vision_start, self._tokens.vision_end
        return [([*encode(f"<{seconds:.1f} seconds>"), start], [end]) for seconds in layout.timestamps]
