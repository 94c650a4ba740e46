"""The M-RoPE positions of a prompt's tokens.

Text goes on by one in all three dimensions. A medium's rows begin where the text before it ended: their time stands
still, since Qwen3-VL gives every frame of a video a grid of its own, and height and width count the grid's rows and
columns. What follows goes on after the longer edge of the grid, not after the number of its tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from decoder_service.engine import Span


def mrope_positions(length: int, spans: Sequence[Span]) -> NDArray[np.int64]:
    """Positions of a prompt and of the token after it.

    Args:
        length: Tokens of the prompt.
        spans: Its images and frames; their shapes are the rows and columns of their tokens.

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
        rows, columns = span.shape
        positions[0, span.start : span.stop] = position
        positions[1, span.start : span.stop] = position + np.repeat(np.arange(rows), columns)
        positions[2, span.start : span.stop] = position + np.tile(np.arange(columns), rows)
        place, position = span.stop, position + max(rows, columns)
    positions[:, place:] = position + np.arange(length + 1 - place)
    return positions
