"""The encoder's input for each value of a pixel, as transformers' processors compute it.

Pixels are bytes after resizing, so a table of 256 values is equivalent and saves three passes over float arrays.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def separate_levels(mean: Sequence[float], std: Sequence[float], scale: float) -> NDArray[np.float32]:
    """Levels [channels, 256] where rescaling and normalization are separate, as in transformers' PIL backend.

    Its `rescale` multiplies in float64 and rounds to float32, its `normalize` computes in float32.
    """
    values = (np.arange(256, dtype=np.float64) * scale).astype(np.float32)
    return (values - _column(mean)) / _column(std)


def fused_levels(mean: Sequence[float], std: Sequence[float], scale: float) -> NDArray[np.float32]:
    """Levels [channels, 256] where mean and deviation hold the scale, as in transformers' torchvision backend."""
    values = np.arange(256, dtype=np.float32)
    factor = np.float32(1.0 / scale)
    levels: NDArray[np.float32] = (values - _column(mean) * factor) / (_column(std) * factor)
    return levels


def _column(values: Sequence[float]) -> NDArray[np.float32]:
    return np.asarray(values, np.float32)[:, None]
