"""How an image is divided into crops, and which of their patches are encoded.

An image is resized to fit a canvas of whole crops, whose rest on the right or at the bottom is padding. Patches that
are padding altogether are masked: none attends to them, and their features are left out. All crops but those at the
right and the bottom edge are complete. In front of them the encoder gets the overview: the canvas, resized to one crop.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

from vision_service.media import Grid

_SHORTEST = 10
"""Fewest pixels of a side after resizing, as in transformers."""


class Canvas(NamedTuple):
    """The canvas of an image.

    Attributes:
        columns: Crops beside each other.
        rows: Crops below each other.
        size: Width and height of the image on it, in pixels.
    """

    columns: int
    rows: int
    size: tuple[int, int]


def canvas_of(width: int, height: int, crop: int, most: int) -> Canvas:
    """The canvas of an image, as `Phi4MultimodalImageProcessor.dynamic_preprocess` chooses it.

    Args:
        width: Width of the image in pixels.
        height: Height of the image.
        crop: Edge of a crop in pixels.
        most: Most crops.

    Raises:
        ValueError: A side would have less than ten pixels.
    """
    columns, rows = math.ceil(width / crop), math.ceil(height / crop)
    if columns * rows > most:
        columns, rows = _closest(width, height, crop, most)
    # In transformers' order of operations: a product may fall just below a whole number.
    by_width, by_height = crop * columns / width, crop * rows / height
    wide = by_width < by_height
    size = (crop * columns, int(height * by_width)) if wide else (int(width * by_height), crop * rows)
    if min(size) < _SHORTEST:
        raise ValueError(f"would be {size[0]} x {size[1]} pixels; no side may have less than {_SHORTEST}")
    return Canvas(columns, rows, size)


def _closest(width: int, height: int, crop: int, most: int) -> tuple[int, int]:
    """Columns and rows of the closest ratio; of equal ones the larger canvas, if the image has half of its pixels."""
    ratio, best, least = width / height, (1, 1), math.inf
    for columns, rows in _arrangements(most):
        difference = abs(ratio - columns / rows)
        if difference < least:
            least, best = difference, (columns, rows)
        elif difference == least and width * height > 0.5 * crop * crop * columns * rows:
            best = (columns, rows)
    return best


@functools.lru_cache(maxsize=64)
def _arrangements(most: int) -> Sequence[tuple[int, int]]:
    """Columns and rows of up to `most` crops, from the fewest crops on."""
    # The set is filled as transformers fills it: its order decides between arrangements of as many crops.
    found = {(i, j) for n in range(1, most + 1) for i in range(1, n + 1) for j in range(1, n + 1) if i * j <= most}
    return sorted(found, key=lambda pair: pair[0] * pair[1])


class Tile(NamedTuple):
    """The patches of a crop that are encoded.

    Where the last patches that are not padding fill only half of a token, the masked ones beside them are encoded, too:
    tokens are means of 2 x 2 patches.

    Attributes:
        height: Rows of patches.
        width: Columns of patches.
        rows: Rows that are not masked, the first ones.
        columns: Columns that are not masked.
    """

    height: int
    width: int
    rows: int
    columns: int

    @property
    def patches(self) -> int:
        """Number of patches."""
        return self.height * self.width

    @property
    def masked(self) -> bool:
        """Whether some of them are masked."""
        return (self.height, self.width) != (self.rows, self.columns)


class Crops(NamedTuple):
    """The patches of an image.

    Attributes:
        side: Patches along an edge of a crop.
        rows: Rows of patches that are not masked.
        columns: Columns of patches that are not masked.
    """

    side: int
    rows: int
    columns: int

    @property
    def grid(self) -> Grid:
        """The extent in patches, two for each token of the crops, also where the last one has only one."""
        rows, columns = (sum(-(-seen // 2) for seen, _ in self._along(total)) for total in self[1:])
        return Grid(1, 2 * rows, 2 * columns)

    @property
    def overview(self) -> Tile:
        """The overview, a complete crop."""
        return Tile(self.side, self.side, self.side, self.side)

    @property
    def tiles(self) -> Sequence[Sequence[Tile]]:
        """The crops, row by row."""
        return [
            [Tile(height, width, rows, columns) for columns, width in self._along(self.columns)]
            for rows, height in self._along(self.rows)
        ]

    @property
    def patches(self) -> int:
        """Patches of the crops, without the overview."""
        return sum(tile.patches for row in self.tiles for tile in row)

    @classmethod
    def of_tokens(cls, side: int, tokens: int) -> Crops:
        """Crops of tokens x tokens tokens."""
        whole, rest = divmod(tokens, tokens_along(side))
        seen = whole * side + 2 * rest
        return cls(side, seen, seen)

    def _along(self, total: int) -> list[tuple[int, int]]:
        """Of each crop along an edge: patches that are not masked, and those that are encoded."""
        seen = [min(self.side, total - start) for start in range(0, total, self.side)]
        return [(one, min(self.side, one + one % 2)) for one in seen]


def tokens_along(side: int) -> int:
    """Tokens along an edge of a crop of `side` patches."""
    return -(-side // 2)


def token_count(grid: Grid, side: int) -> int:
    """Feature rows of an image: its crops, a separator, and its overview; a separator ends each row of tokens.

    Args:
        grid: As `Crops.grid`.
        side: Patches along an edge of a crop.
    """
    rows, columns, edge = grid.h // 2, grid.w // 2, tokens_along(side)
    return rows * (columns + 1) + 1 + edge * (edge + 1)
