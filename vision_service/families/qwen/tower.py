"""What the forward passes of Qwen's families share: the projection of the patches, and the rotations."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from vision_service.families import tower
from vision_service.families.tower import take_patches
from vision_service.media import Advance, Cancelled, Grid
from vision_service.operators import Operators


class Tower(tower.Tower, abc.ABC):
    """A family's forward pass. For one thread at a time.

    Args:
        model: The model, on its device and in its type. Its weights are moved: it cannot be used afterwards.
        operators: Our own operators, for attention in bfloat16 on a CPU; None: PyTorch's attention.
        int8: Whether layers are computed in 8 bits, by the operators; values between them are bfloat16.

    Raises:
        ValueError: The layers are to be in 8 bits, and there are no operators.
    """

    maps: int
    """Number of feature maps."""

    def __init__(self, model: PreTrainedModel, operators: Operators | None = None, *, int8: bool = False) -> None:
        config: Any = model.config
        width = config.hidden_size // config.num_heads
        super().__init__(config, model.device, model.dtype, width, operators, int8=int8)
        self._heads: int = config.num_heads
        self._merge: int = config.spatial_merge_size
        parts: Any = model  # submodules have no types
        self._patches = take_patches(parts.patch_embed.proj, self.dtype)
        self._frequencies = parts.rotary_pos_emb.inv_freq.float()
        self._scaling = float(parts.rotary_pos_emb.attention_scaling)

    @abc.abstractmethod
    def __call__(self, pixels: Tensor, grids: Sequence[Grid], cancelled: Cancelled, advance: Advance) -> list[Tensor]:
        """Encode concatenated media.

        Args:
            pixels: [sum of patches, channels x temporal patch x patch x patch] in the tower's type, on its device.
            grids: One for each medium.
            cancelled: Called before each layer; True stops the work.
            advance: Called after each layer with the share that is done.

        Returns:
            The feature maps, each [sum of patches / merge^2, out hidden].

        Raises:
            WorkCancelledError: `cancelled` returned True.
        """
