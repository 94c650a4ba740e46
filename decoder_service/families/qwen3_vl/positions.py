"""The M-RoPE positions of a prompt's tokens.

Each text token is one further in all three dimensions. The tokens of a medium start at the position after the text:
their time is constant, since Qwen3-VL gives every frame of a video its own grid, and height and width count the grid's
rows and columns. The next text starts after the longer edge of the grid, not after the number of its tokens.
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
        spans: Its images and frames; their shapes are the rows and columns of their grids.

    Returns:
        Time, height and width of each token, int64 [3, length + 1]. The last column is the position of the first
        generated token; each further token adds one.
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
