"""The cost of encoding a medium, computed from its grid, for estimates of time.

In linear layers the cost is proportional to the number of patches; in attention, to its square within each frame, which
makes large pictures slow.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from vision_service.media import Grid

_ATTENTION_WEIGHT: Mapping[torch.dtype, float] = {
    torch.float32: 1.4,
    torch.bfloat16: 2.9,
    torch.float16: 2.9,
    torch.int8: 5.8,
}
"""Time of an operation of attention relative to one of a linear layer. Measured on 2 cores of an AMD EPYC with
AVX-512 BF16: 150 against 215 GFLOPS in float32, 145 against 425 in bfloat16, against 850 in int8."""

_OWN_ATTENTION_WEIGHT: Mapping[torch.dtype, float] = {torch.bfloat16: 1.3, torch.int8: 2.4}
"""The same with our attention: 400 against 490 and 900 GFLOPS on one of these cores, 300 against 425 and 810 on both
while other processes use them as well."""


class Cost:
    """The cost of one encoder, in floating-point operations of its linear layers.

    Args:
        linear: Multiplications of all linear layers for one patch.
        attention: Sum of the layers' hidden sizes: a pair of patches takes twice as many multiplications.
        dtype: Type in which its linear layers compute.
        own_attention: Whether attention is computed by our operators.
        windowed: Of layers whose attention has windows: sum of hidden size x patches of a window.
        beside: Patches that are encoded beside those of each frame's grid.
    """

    def __init__(
        self,
        linear: int,
        attention: int,
        dtype: torch.dtype,
        *,
        own_attention: bool = False,
        windowed: int = 0,
        beside: int = 0,
    ) -> None:
        weight = (_OWN_ATTENTION_WEIGHT if own_attention else _ATTENTION_WEIGHT)[dtype]
        self._linear = 2.0 * linear + 4.0 * windowed * weight
        self._attention = 4.0 * attention * weight
        self._beside = beside

    def frame(self, patches: int) -> float:
        """Cost of a frame of `patches` patches."""
        patches += self._beside
        return float(patches * (self._linear + patches * self._attention))

    def medium(self, grid: Grid) -> float:
        """Cost of a medium."""
        return grid.t * self.frame(grid.h * grid.w)

    def largest_frame(self, cost: float) -> int:
        """Most patches of a frame within a cost."""
        # patches x linear + patches² x attention = cost, in the form that allows for no attention
        root: float = math.sqrt(self._linear**2 + 4 * self._attention * max(cost, 0.0))
        return max(0, int(2 * max(cost, 0.0) / (self._linear + root)) - self._beside)
