"""The M-RoPE positions of a prompt's tokens, as `get_rope_index` and `generate` of transformers 5.23 have them.

Each text token is one further in all three dimensions. The tokens of a medium start at the position after the text:
height and width count the rows and columns of its grid, and time the steps of its frames. The next text starts after
the longer edge of the grid, not after the number of its tokens, and however many steps there were (decision 45).
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
        spans: Its media; their shapes are the rows and columns of their grids, then the time step of each frame, which
            may be left out of a single one.

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
        rows, columns, *steps = span.shape
        frames = max(len(steps), 1)
        inside = positions[:, span.start : span.stop]
        inside[0] = position + np.repeat(steps or [0], rows * columns)
        inside[1] = position + np.tile(np.repeat(np.arange(rows), columns), frames)
        inside[2] = position + np.tile(np.arange(columns), rows * frames)
        place, position = span.stop, position + max(rows, columns)
    positions[:, place:] = position + np.arange(length + 1 - place)
    return positions
