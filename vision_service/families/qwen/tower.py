"""What the forward passes of Qwen's families share: types, operators, and the projection of the patches."""

from __future__ import annotations

import abc
import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from vision_service.linear import Int8Linear, Linear, MakeLayer
from vision_service.media import Advance, Cancelled, Grid
from vision_service.operators import Operators, attends


class Tower(abc.ABC):
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
        self.config: Any = model.config
        """The encoder's config, in the form of transformers."""
        self.device = model.device
        self.dtype = torch.bfloat16 if int8 else model.dtype
        """Type of the values between the layers."""
        self.int8 = int8
        """Whether its layers are in 8 bits."""
        self._heads: int = self.config.num_heads
        self._merge: int = self.config.spatial_merge_size
        self._make: MakeLayer = Linear
        if int8:
            if operators is None:
                raise ValueError("int8 is computed by our operators, and they are not there")
            self._make = functools.partial(Int8Linear, operators)
        on_cpu = self.device.type == "cpu"
        fits = on_cpu and self.dtype is torch.bfloat16 and attends(self.config.hidden_size // self._heads)
        self._operators = operators if fits else None
        parts: Any = model  # submodules have no types
        # A convolution whose stride is its kernel is a matrix product over the patches.
        patches = parts.patch_embed.proj.to(self.dtype)
        self._patches = Linear(patches.weight.flatten(1), patches.bias)
        self._frequencies = parts.rotary_pos_emb.inv_freq.float()
        self._scaling = float(parts.rotary_pos_emb.attention_scaling)

    @property
    def own_attention(self) -> bool:
        """Whether attention is computed by our operators."""
        return self._operators is not None

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
