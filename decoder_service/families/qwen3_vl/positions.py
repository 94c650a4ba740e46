"""Where the media of a prompt lie, and the M-RoPE positions of its tokens.

Text goes on by one in all three dimensions. A medium's rows begin where the text before it ended: their time stands
still, since Qwen3-VL gives every frame of a video a grid of its own, and height and width count the grid's rows and
columns. What follows goes on after the longer edge of the grid, not after the number of its tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Span:
    """The rows of one medium in a prompt: an image, or one frame of a video.

    Attributes:
        start: Its first token.
        stop: The token after its last.
        grid: Rows and columns of tokens.
        key: What names its content exactly; empty: nobody knows.
    """

    start: int
    stop: int
    grid: tuple[int, int]
    key: str = ""


def media_spans(
    token_ids: NDArray[np.int32],
    grids: NDArray[np.int64],
    keys: tuple[str, ...],
    *,
    image_token: int,
    merge_size: int,
) -> tuple[Span, ...]:
    """Find the media of a prompt.

    Args:
        token_ids: The prompt, int32 [n].
        grids: Patches (1, h, w) of each medium, int64 [m, 3], in order.
        keys: One for each medium, or none at all.
        image_token: What stands at every row of features.
        merge_size: Patches along one edge of a token.

    Raises:
        ValueError: The prompt does not have just the rows that the grids have, each grid's without a gap.
    """
    if keys and len(keys) != len(grids):
        raise ValueError(f"{len(keys)} media keys for {len(grids)} grids")
    places = np.flatnonzero(token_ids == image_token)
    spans = []
    used = 0
    for index, (t, h, w) in enumerate(grids.tolist()):
        grid = (h // merge_size, w // merge_size)
        size = grid[0] * grid[1]
        mine = places[used : used + size]
        if t != 1 or size == 0 or mine.size != size or mine[-1] - mine[0] != size - 1:
            raise ValueError(f"the prompt has no {size} tokens in a row for grid {index}, which is {(t, h, w)}")
        used += size
        spans.append(Span(int(mine[0]), int(mine[-1]) + 1, grid, keys[index] if keys else ""))
    if used != places.size:
        raise ValueError(f"the prompt has {places.size} media tokens and the grids {used}")
    return tuple(spans)


def readable(length: int, spans: tuple[Span, ...], rows: int) -> int:
    """How many tokens of a prompt, from the first on, can be read with so many rows of features.

    Args:
        length: Tokens of the prompt.
        spans: Its media.
        rows: Rows that are there, from the first on.
    """
    for span in spans:
        size = span.stop - span.start
        if rows < size:
            return span.start + rows
        rows -= size
    return length


def mrope_positions(length: int, spans: tuple[Span, ...]) -> NDArray[np.int64]:
    """Positions of a prompt and of the token after it.

    Args:
        length: Tokens of the prompt.
        spans: Its media.

    Returns:
        Time, height and width of each token, int64 [3, length + 1]. The last column is where the answer begins; each of
        its tokens goes one further.
    """
    positions = np.empty((3, length + 1), np.int64)
    place, position = 0, 0
    for span in spans:
        text = span.start - place
        positions[:, place : span.start] = position + np.arange(text)
        position += text
        rows, columns = span.grid
        positions[0, span.start : span.stop] = position
        positions[1, span.start : span.stop] = position + np.repeat(np.arange(rows), columns)
        positions[2, span.start : span.stop] = position + np.tile(np.arange(columns), rows)
        place, position = span.stop, position + max(rows, columns)
    positions[:, place:] = position + np.arange(length + 1 - place)
    return positions
