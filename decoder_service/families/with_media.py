"""What the families that take media share: placeholders become runs of tokens that take feature rows."""

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
from serving.families import ImageTokens


@dataclass(frozen=True)
class Run:
    """Feature rows of a medium that follow one another.

    Attributes:
        shape: What the positions of its tokens depend on.
        rows: Number of feature rows.
        before: Tokens before it.
        after: Tokens after it.
    """

    shape: tuple[int, ...]
    rows: int
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()


class WithMedia(abc.ABC):
    """A family; see `Family`.

    Args:
        tokens: Ids of the control tokens.
    """

    inline_placeholders = False

    def __init__(self, tokens: ImageTokens) -> None:
        self._image = tokens.image

    @property
    @abc.abstractmethod
    def placeholders(self) -> Mapping[int, MediaKind]:
        """See `Family.placeholders`."""

    @abc.abstractmethod
    def token_count(self, grid: tuple[int, int, int]) -> int:
        """See `Family.token_count`."""

    @abc.abstractmethod
    def _runs(self, layout: Layout, encode: Encode) -> list[Run]:
        """The runs of a medium, whose grid has no zero.

        Raises:
            ValueError: The layout is inconsistent.
        """

    @abc.abstractmethod
    def _positions(self, length: int, media: Sequence[Span]) -> NDArray[np.int64]:
        """See `Prompt.positions`."""

    @abc.abstractmethod
    def _inputs(self, layouts: Sequence[Layout]) -> Mapping[str, NDArray[np.int64]] | None:
        """See `Prompt.inputs`."""

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
            runs = self._runs(layout, encode) if min(layout.grid) > 0 else []
            rows = [run.rows for run in runs]
            if min(rows, default=0) < 1 or sum(rows) != layout.token_count:
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
            engine_ids[span.start : span.stop] = self._image
        return Prompt(
            token_ids=tuple(ids),
            engine_token_ids=engine_ids,
            positions=self._positions(len(ids), media),
            media=tuple(media),
            inputs=self._inputs(layouts),
            media_tokens=sum(layout.token_count for layout in layouts),
        )
