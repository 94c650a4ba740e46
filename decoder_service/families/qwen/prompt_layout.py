"""The tokens of images and videos in a prompt of Qwen's vision families.

A medium's placeholder becomes one `<|image_pad|>` or `<|video_pad|>` for each feature row. How a video is divided into
runs of them, and what stands between, is the family's own.
"""

from __future__ import annotations

import abc
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from decoder_service.chat import Layout, MediaKind
from decoder_service.engine import Span
from decoder_service.families.family import Encode, Prompt
from decoder_service.families.qwen.positions import mrope_positions
from serving.bundle import Bundle, TokenIds


@dataclass(frozen=True)
class Run:
    """Feature rows of a medium that follow one another.

    Attributes:
        shape: What the positions of its tokens depend on; see `mrope_positions`.
        rows: Number of feature rows.
        before: Tokens before it.
        after: Tokens after it.
    """

    shape: tuple[int, ...]
    rows: int
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()


class QwenVL(abc.ABC):
    """A family; see `Family`.

    Args:
        tokens: Ids of the control tokens.
        merge_size: Patches along one edge of a token.
    """

    def __init__(self, tokens: TokenIds, *, merge_size: int) -> None:
        self._tokens = tokens
        self._merge_size = merge_size

    @abc.abstractmethod
    def _runs(self, layout: Layout, encode: Encode) -> list[Run]:
        """The runs of a medium, whose grid is valid.

        Raises:
            ValueError: The layout is inconsistent.
        """

    @abc.abstractmethod
    def _inputs(self, layouts: Sequence[Layout]) -> Mapping[str, NDArray[np.int64]] | None:
        """See `Prompt.inputs`."""

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
        return sum(len(run.before) + run.rows + len(run.after) for run in self._runs(layout, encode))

    def lay_out(
        self, token_ids: Sequence[int], layouts: Sequence[Layout], encode: Encode, keys: Sequence[str] = ()
    ) -> Prompt:
        """Replace each placeholder by the medium's tokens, and compute positions; see `Family.lay_out`."""
        placeholders = self.placeholders
        places = sum(token in placeholders for token in token_ids)
        if places != len(layouts) or (keys and len(keys) != places):
            raise ValueError(f"there are {len(layouts)} layouts and {len(keys)} keys for {places} media")
        ids: list[int] = []
        media: list[Span] = []
        waiting = zip(layouts, keys or itertools.repeat(""), strict=False)
        for token in token_ids:
            if token not in placeholders:
                ids.append(token)
                continue
            layout, key = next(waiting)
            t, h, w = layout.grid
            runs = self._runs(layout, encode) if min(self._merged(layout)) > 0 else []
            if not runs or sum(run.rows for run in runs) != layout.token_count:
                raise ValueError(f"a grid of {t}x{h}x{w} has not {layout.token_count} tokens in {len(runs)} runs")
            for number, run in enumerate(runs):
                ids += run.before
                # Equal keys mean equal features and equal positions.
                name = f"{key}:{h}x{w}:{number}" if key else ""
                media.append(Span(len(ids), len(ids) + run.rows, run.shape, name))
                ids.extend(itertools.repeat(token, run.rows))
                ids += run.after
        engine_ids = np.array(ids, np.int32)
        for span in media:
            engine_ids[span.start : span.stop] = self._tokens.image
        return Prompt(
            token_ids=tuple(ids),
            engine_token_ids=engine_ids,
            positions=mrope_positions(len(ids), media),
            media=tuple(media),
            inputs=self._inputs(layouts),
            media_tokens=sum(layout.token_count for layout in layouts),
        )

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
