"""The vision tower: the forward pass of Qwen2.5-VL's encoder, in the operations that are fastest on a CPU.

It computes the same as transformers' `Qwen2_5_VisionTransformerPretrainedModel`, with that model's weights. Patches are
put in the order of the windows once, and features back at the end. Any order of windows within a frame gives the same:
here windows of one size follow one another, so that they attend together.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.activations import ACT2FN
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

from vision_service.families.qwen import tower
from vision_service.families.qwen.layers import attend, pair_up
from vision_service.families.tower import MLP_ROWS, Runs, take
from vision_service.linear import Layer, MakeLayer
from vision_service.media import Advance, Cancelled, Grid, WorkCancelledError
from vision_service.operators import Operators


class _Layer(NamedTuple):
    qkv: Layer  # with the normalization before it, as `gate_up`
    out: Layer
    gate_up: Layer
    down: Layer


class Tower(tower.Tower):
    """The encoder's forward pass. For one thread at a time.

    Args:
        model: The model, on its device and in its type. Its weights are moved: it cannot be used afterwards.
        operators: Our own operators, for attention in bfloat16 on a CPU; None: PyTorch's attention.
        int8: Whether layers are computed in 8 bits, by the operators; values between them are bfloat16.

    Raises:
        ValueError: The config has an unsupported activation.
    """

    maps = 1

    def __init__(
        self,
        model: Qwen2_5_VisionTransformerPretrainedModel,
        operators: Operators | None = None,
        *,
        int8: bool = False,
    ) -> None:
        super().__init__(model, operators, int8=int8)
        config, make = self.config, self._make
        if config.hidden_act not in ACT2FN:
            raise ValueError(f"hidden_act is {config.hidden_act}; known are {', '.join(ACT2FN)}")
        self._activation = ACT2FN[config.hidden_act]
        parts: Any = model  # submodules have no types
        self._layers = [_take_layer(make, block, self._heads, self.dtype) for block in parts.blocks]
        self._whole = frozenset(config.fullatt_block_indexes)
        self._norm = parts.merger.ln_q.to(self.dtype)
        self._up, self._down = (take(make, parts.merger.mlp[index]) for index in (0, 2))

    def __call__(self, pixels: Tensor, grids: Sequence[Grid], cancelled: Cancelled, advance: Advance) -> list[Tensor]:
        """Encode concatenated media; each frame attends only to itself, or by windows.

        Args:
            pixels: [sum of patches, channels x temporal patch x patch x patch] in the tower's type, on its device.
            grids: One for each medium.
            cancelled: Called before each layer; True stops the work.
            advance: Called after each layer with the share that is done.

        Returns:
            The merged map [sum of patches / merge^2, out hidden].

        Raises:
            WorkCancelledError: `cancelled` returned True.
        """
        # 1. Blocks of patches in the order of the windows, and rotations of each head's pairs [patches, pairs]
        frames = [(grid.h, grid.w) for grid in grids for _ in range(grid.t)]
        order, windows = self._windows(frames)
        block = self._merge**2
        hidden = _ordered(self._patches(pixels), order, block)
        turns = _ordered(self._turns(torch.tensor(grids, device=self.device)), order, block)
        whole = [(size, len(list(run))) for size, run in groupby(h * w for h, w in frames)]
        # 2. The layers
        for index, layer in enumerate(self._layers):
            if cancelled():
                raise WorkCancelledError
            runs = whole if index in self._whole else windows
            hidden = layer.out.add(attend(layer.qkv(hidden), turns, runs, self._heads, self._operators), hidden)
            self._feed_forward(layer, hidden)
            advance((index + 1) / len(self._layers))
        # 3. Blocks of patches become tokens, in their own order again
        merged = self._down(self._up.gelu(self._norm(hidden).view(len(order), -1), "none"))
        return [torch.empty_like(merged).index_copy_(0, order, merged)]

    def _windows(self, frames: Sequence[tuple[int, int]]) -> tuple[Tensor, Runs]:
        """The order of the blocks of patches [blocks], and the windows in it, in patches."""
        block, orders, sizes, start = self._merge**2, [], [], 0
        for h, w in frames:
            order, of_frame = _frame_windows(h, w, self._merge, self.config.window_size, _edge(self.config.patch_size))
            orders.append(order + start)
            sizes += of_frame
            start += h * w // block
        return torch.cat(orders).to(self.device), [(size, len(list(run))) for size, run in groupby(sizes)]

    def _turns(self, grids: Tensor) -> Tensor:
        places = get_vision_position_ids(grids, self._merge)  # [patches, row and column]
        angles = (places[..., None].float() * self._frequencies).flatten(1)
        return torch.polar(torch.full_like(angles, self._scaling), angles)

    def _feed_forward(self, layer: _Layer, hidden: Tensor) -> None:
        """Add the feed-forward part to `hidden`, in place."""
        for rows in torch.split(hidden, MLP_ROWS):
            gate, up = layer.gate_up(rows).chunk(2, dim=-1)
            rows.copy_(layer.down.add(self._activation(gate) * up, rows))


@functools.lru_cache(maxsize=64)
def _frame_windows(h: int, w: int, merge: int, window: int, patch: int) -> tuple[Tensor, list[int]]:
    """Windows of one frame, those of one size after another.

    Returns:
        The order of the frame's blocks of patches, and the patches of each window.
    """
    order, bounds = get_vision_window_index(
        torch.tensor([[1, h, w]]), spatial_merge_size=merge, window_size=window, patch_size=patch
    )
    sizes = bounds.diff().tolist()
    blocks: Any = torch.split(order, [size // merge**2 for size in sizes])
    by_size = sorted(range(len(sizes)), key=lambda index: -sizes[index])
    return torch.cat([blocks[index] for index in by_size]), [sizes[index] for index in by_size]


def _ordered(rows: Tensor, order: Tensor, block: int) -> Tensor:
    """Rows [rows, width] in another order of their blocks."""
    return rows.view(len(order), -1)[order].view(len(order) * block, -1)


def _take_layer(make: MakeLayer, block: Any, heads: int, dtype: torch.dtype) -> _Layer:
    gate, up = block.mlp.gate_proj, block.mlp.up_proj
    gate_up = make(torch.cat([gate.weight, up.weight]), torch.cat([gate.bias, up.bias]), block.norm2.to(dtype))
    gate.weight = up.weight = None  # as in `take`
    return _Layer(
        pair_up(make, block.attn.qkv, block.norm1.to(dtype), heads),
        take(make, block.attn.proj),
        gate_up,
        take(make, block.mlp.down_proj),
    )


def _edge(size: int | Sequence[int]) -> int:
    """A patch's edge: configs write it as a number or as equal numbers."""
    return size if isinstance(size, int) else int(size[0])
