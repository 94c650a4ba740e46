"""What a calibration gives to the family that reads it, and what the family finds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from .precision import Phase, Precision


@dataclass(frozen=True, eq=False)
class Tokens:
    """One example as a decoder reads it.

    Attributes:
        ids: int64 [n].
        positions: int64 [axes, n].
        is_media: which tokens are rows of features, bool [n].
        features: those rows, float32 [m, (1 + L) · hidden].
    """

    ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    is_media: NDArray[np.bool_]
    features: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class SitePlan:
    """How the matrices that read the same activations are rounded.

    Attributes:
        factors: what the activations are multiplied by and the columns divided, powers of two [channels], for each
            graph.
        importance: root mean square of each input before it is multiplied, float32 [inputs].
    """

    factors: Mapping[Precision | Phase, torch.Tensor]
    importance: torch.Tensor


Plan = Mapping[tuple[int, str], SitePlan]
"""By the index of a layer and the name of a site in it; what is in no layer has an index of -1."""
