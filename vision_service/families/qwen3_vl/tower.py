"""The vision tower: the forward pass of Qwen3-VL's encoder, in the operations that are fastest on a CPU.

It computes the same as transformers' `Qwen3VLVisionModel`, with that model's weights. Decision 17 has the gain of each
difference, and what was tried without gain.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812  # PyTorch's own abbreviation
from torch import Tensor, nn
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel
from transformers.vision_utils import get_vision_interpolation_indices_and_weights, get_vision_position_ids

from vision_service.families.qwen import tower
from vision_service.families.qwen.layers import attend, pair_up
from vision_service.families.tower import GELU, feed_forward, take
from vision_service.linear import Layer
from vision_service.media import Advance, Cancelled, Grid, WorkCancelledError
from vision_service.operators import Operators


class _Layer(NamedTuple):
    qkv: Layer  # with the normalization before it, as `up`
    out: Layer
    up: Layer
    down: Layer


class _Merger(NamedTuple):
    """Merges a block of merge x merge patches into one feature row. DeepStack's mergers normalize after merging."""

    norm: nn.LayerNorm
    up: Layer
    down: Layer

    def __call__(self, hidden: Tensor, block: int) -> Tensor:
        width = hidden.shape[1] * block
        if self.norm.normalized_shape[0] == width:
            merged = self.norm(hidden.view(-1, width))
        else:
            merged = self.norm(hidden).view(-1, width)
        return self.down(self.up.gelu(merged, "none"))


class Tower(tower.Tower):
    """The encoder's forward pass. For one thread at a time.

    Args:
        model: The model, on its device and in its type. Its weights are moved: it cannot be used afterwards.
        operators: Our own operators, for attention in bfloat16 on a CPU; None: PyTorch's attention.
        int8: Whether layers are computed in 8 bits, by the operators; values between them are bfloat16.

    Raises:
        ValueError: The config has an unsupported activation.
    """

    def __init__(self, model: Qwen3VLVisionModel, operators: Operators | None = None, *, int8: bool = False) -> None:
        super().__init__(model, operators, int8=int8)
        config = self.config
        if config.hidden_act not in GELU:
            raise ValueError(f"hidden_act is {config.hidden_act}; known are {', '.join(GELU)}")
        self.maps = 1 + len(config.deepstack_visual_indexes)
        self._gelu = GELU[config.hidden_act]
        make = self._make
        parts: Any = model  # submodules have no types

        # Positions are computed in float32 for all types, as in transformers.
        self._positions = parts.pos_embed.weight.float()
        self._resampling: dict[str, Any] = {
            "num_grid_per_side": parts.num_grid_per_side,
            "mode": parts.interpolation_mode,
            "align_corners": parts.interpolation_align_corners,
            "spatial_merge_size": self._merge,
        }
        self._layers = [
            _Layer(
                pair_up(make, block.attn.qkv, block.norm1, self._heads),
                take(make, block.attn.proj),
                take(make, block.mlp.linear_fc1, block.norm2),
                take(make, block.mlp.linear_fc2),
            )
            for block in parts.blocks
        ]
        self._merger, *levels = (
            _Merger(merger.norm.to(self.dtype), take(make, merger.linear_fc1), take(make, merger.linear_fc2))
            for merger in (parts.merger, *parts.deepstack_merger_list)
        )
        self._levels = dict(zip(config.deepstack_visual_indexes, levels, strict=True))

    def __call__(self, pixels: Tensor, grids: Sequence[Grid], cancelled: Cancelled, advance: Advance) -> list[Tensor]:
        """Encode concatenated media; each frame attends only to itself.

        Args:
            pixels: [sum of patches, channels x temporal patch x patch x patch] in the tower's type, on its device.
            grids: One for each medium.
            cancelled: Called before each layer; True stops the work.
            advance: Called after each layer with the share that is done.

        Returns:
            The merged map and the DeepStack maps from the lowest level up, each [sum of patches / merge^2, out hidden].

        Raises:
            WorkCancelledError: `cancelled` returned True.
        """
        # 1. Patches and their positions: learned embeddings, and rotations of each head's pairs [patches, pairs]
        positions, turns = self._place(torch.tensor(grids, device=self.device))
        hidden = self._patches.add(pixels, positions.to(self.dtype))
        # 2. Runs of frames of one size attend together
        runs = [(size, len(list(run))) for size, run in groupby(_frame_sizes(grids))]
        levels = []
        for index, layer in enumerate(self._layers):
            if cancelled():
                raise WorkCancelledError
            hidden = layer.out.add(attend(layer.qkv(hidden), turns, runs, self._heads, self._operators), hidden)
            feed_forward(layer.up, layer.down, hidden, self._gelu)
            if index in self._levels:
                levels.append(self._levels[index](hidden, self._merge**2))
            advance((index + 1) / len(self._layers))
        # 3. Blocks of patches become tokens
        return [self._merger(hidden, self._merge**2), *levels]

    def _place(self, grids: Tensor) -> tuple[Tensor, Tensor]:
        indices, weights = get_vision_interpolation_indices_and_weights(grids, **self._resampling)
        positions = F.embedding_bag(indices, self._positions, per_sample_weights=weights, mode="sum")
        places = get_vision_position_ids(grids, self._merge)  # [patches, row and column]
        angles = (places[..., None].float() * self._frequencies).flatten(1)
        return positions, torch.polar(torch.full_like(angles, self._scaling), angles)


def _frame_sizes(grids: Sequence[Grid]) -> Iterator[int]:
    for grid in grids:
        yield from [grid.h * grid.w] * grid.t
