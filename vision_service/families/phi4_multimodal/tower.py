"""The vision tower: the forward pass of Phi-4-multimodal's encoder, in the operations that are fastest on a CPU.

It computes the same as transformers' `Phi4MultimodalImageEmbedding`, with that model's weights. Patches that are
padding are encoded only where a token needs them, and the layers after the features are left out.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812  # PyTorch's own abbreviation
from torch import Tensor
from transformers.models.phi4_multimodal.modeling_phi4_multimodal import Phi4MultimodalImageEmbedding

from vision_service.families import tower
from vision_service.families.phi4_multimodal.crops import Crops, Tile
from vision_service.families.tower import GELU, feed_forward, take, take_patches
from vision_service.linear import Layer, MakeLayer
from vision_service.media import Advance, Cancelled, WorkCancelledError
from vision_service.operators import Operators


class _Layer(NamedTuple):
    qkv: Layer  # with the normalization before it, as `up`
    out: Layer
    up: Layer
    down: Layer


class Tower(tower.Tower):
    """The encoder's forward pass. For one thread at a time.

    Args:
        model: The model, on its device and in its type. Its weights are moved: it cannot be used afterwards.
        operators: Our own operators, for attention in bfloat16 on a CPU; None: PyTorch's attention.
        int8: Whether layers are computed in 8 bits, by the operators; values between them are bfloat16.

    Raises:
        ValueError: The config has an unsupported activation, or the layers are to be in 8 bits and there are no
            operators.
    """

    def __init__(
        self, model: Phi4MultimodalImageEmbedding, operators: Operators | None = None, *, int8: bool = False
    ) -> None:
        parts: Any = model  # submodules have no types
        vision, bias = parts.config.vision_config, parts.img_projection_up.bias
        self._heads: int = vision.num_attention_heads
        width = vision.hidden_size // self._heads
        super().__init__(parts.config, bias.device, bias.dtype, width, operators, int8=int8)
        if vision.hidden_act not in GELU:
            raise ValueError(f"hidden_act is {vision.hidden_act}; known are {', '.join(GELU)}")
        self._gelu = GELU[vision.hidden_act]
        make, embeddings = self._make, parts.img_processor.embeddings
        self._patches = take_patches(embeddings.patch_embedding, self.dtype)
        self._positions = embeddings.position_embedding.weight.to(self.dtype)
        self._positions_along: int = embeddings.num_patches_per_side
        self._layers = [
            _Layer(
                _take_qkv(make, layer.self_attn, layer.layer_norm1),
                take(make, layer.self_attn.out_proj),
                take(make, layer.mlp.fc1, layer.layer_norm2),
                take(make, layer.mlp.fc2),
            )
            for layer in parts.img_processor.encoder.layers
        ]
        self._row_end, self._overview_start = (
            one.flatten().to(self.dtype) for one in (parts.sub_img_feature_extensor, parts.global_img_feature_extensor)
        )
        self._up, self._down = take(make, parts.img_projection_up), take(make, parts.img_projection_down)
        self._no_turn = torch.ones(width // 2, dtype=torch.complex64)

    def __call__(self, pixels: Tensor, media: Sequence[Crops], cancelled: Cancelled, advance: Advance) -> Tensor:
        """Encode concatenated images; each crop attends only to its patches that are not masked.

        Args:
            pixels: [patches, channels x patch x patch] in the tower's type, on its device: of each image those of its
                overview and of its tiles, row by row.
            media: One for each image.
            cancelled: Called before each layer; True stops the work.
            advance: Called after each layer with the share that is done.

        Returns:
            [sum of tokens, hidden size of the language model].

        Raises:
            WorkCancelledError: `cancelled` returned True.
        """
        # 1. Patches and their learned positions
        tiles = [tile for crops in media for tile in (crops.overview, *(one for row in crops.tiles for one in row))]
        places = torch.cat([_places(tile, self._positions_along) for tile in tiles]).to(self.device)
        hidden = self._patches.add(pixels, self._positions[places])
        # 2. The layers; complete crops of one size attend together
        groups = list(_groups(tiles, self.device))
        for index, layer in enumerate(self._layers):
            if cancelled():
                raise WorkCancelledError
            hidden = layer.out.add(self._attend(layer.qkv(hidden), groups), hidden)
            feed_forward(layer.up, layer.down, hidden, self._gelu)
            advance((index + 1) / len(self._layers))
        # 3. Blocks of patches become tokens, in the order of the prompt
        pooled = (
            _pool(one.view(tile.height, tile.width, -1))
            for one, tile in zip(torch.split(hidden, [tile.patches for tile in tiles]), tiles, strict=True)
        )
        rows = torch.cat([self._arranged(crops, pooled) for crops in media])
        return self._down(self._up.gelu(rows, "none"))

    def _attend(self, projected: Tensor, groups: Sequence[_Group]) -> Tensor:
        """Attention within each tile.

        Args:
            projected: Queries, keys and values [rows, 3 x heads x width].
            groups: The tiles.

        Returns:
            [rows, heads x width].
        """
        outs, start = [], 0
        for size, count, keys in groups:
            rows = projected[start : start + size * count]
            start += size * count
            if self._operators is not None and keys is None:
                turns = self._no_turn.expand(len(rows), -1).contiguous()
                outs.append(self._operators.attend(rows, turns, [(size, count)], self._heads))
                continue
            # [count, heads, size, width] each
            query, key, value = rows.view(count, size, 3, self._heads, -1).permute(2, 0, 3, 1, 4).contiguous()
            if keys is not None:
                key, value = key[:, :, keys], value[:, :, keys]
            outs.append(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(len(rows), -1))
        return outs[0] if len(outs) == 1 else torch.cat(outs)

    def _arranged(self, crops: Crops, pooled: Iterator[Tensor]) -> Tensor:
        """The rows of an image: its crops, a separator and its overview; a separator ends each row of tokens."""
        overview = next(pooled)
        picture = torch.cat([torch.cat([next(pooled) for _ in row], dim=1) for row in crops.tiles])
        return torch.cat([self._ended(picture), self._overview_start[None], self._ended(overview)])

    def _ended(self, tokens: Tensor) -> Tensor:
        return torch.cat([tokens, self._row_end.expand(len(tokens), 1, -1)], dim=1).flatten(0, 1)


class _Group(NamedTuple):
    """Tiles of one size that follow one another.

    Attributes:
        patches: Of each.
        tiles: Their number.
        keys: The patches that are not masked; None: all. Such a tile is alone.
    """

    patches: int
    tiles: int
    keys: Tensor | None


def _groups(tiles: Sequence[Tile], device: torch.device) -> Iterator[_Group]:
    for (size, masked), run in groupby(tiles, key=lambda tile: (tile.patches, tile.masked)):
        if not masked:
            yield _Group(size, len(list(run)), None)
            continue
        for tile in run:
            yield _Group(size, 1, _seen(tile).flatten().nonzero().flatten().to(device))


def _seen(tile: Tile) -> Tensor:
    """Whether patches of a tile are not masked, [height, width]."""
    seen = torch.zeros(tile.height, tile.width, dtype=torch.bool)
    seen[: tile.rows, : tile.columns] = True
    return seen


@functools.lru_cache(maxsize=256)
def _places(tile: Tile, along: int) -> Tensor:
    """The position of each patch of a tile: its place as a share of what is not masked, on the learned grid.

    Args:
        tile: The tile.
        along: Positions along an edge of that grid.

    Returns:
        int64 [height x width]; 0 where a patch is masked.
    """
    # In float32 and in transformers' order of operations: shares lie on the boundaries.
    boundaries = torch.arange(1 / along, 1.0, 1 / along)

    def axis(seen: int, count: int) -> Tensor:
        shares = torch.arange(count, dtype=torch.float32) * (1.0 / torch.tensor(seen))
        return torch.bucketize(shares.clamp(max=1.0 - 1e-6), boundaries, right=True)

    rows, columns = axis(tile.rows, tile.height), axis(tile.columns, tile.width)
    return torch.where(_seen(tile), rows[:, None] * along + columns, 0).flatten()


def _pool(patches: Tensor) -> Tensor:
    """Means of 2 x 2 patches, [height, width, hidden] to half of both.

    Of a complete crop with an odd number of patches along its edge, the last token has the last patch and the one
    before it, as with transformers' reflection.
    """
    for dim in (0, 1):
        if patches.shape[dim] % 2:
            patches = torch.cat([patches, patches.narrow(dim, patches.shape[dim] - 2, 1)], dim=dim)
    height, width, hidden = patches.shape
    return patches.view(height // 2, 2, width // 2, 2, hidden).mean(dim=(1, 3))


def _take_qkv(make: MakeLayer, attention: Any, norm: Any) -> Layer:
    """The projection to queries, keys and values in one; the modules' weights are given up."""
    parts = [attention.q_proj, attention.k_proj, attention.v_proj]
    layer = make(torch.cat([part.weight for part in parts]), torch.cat([part.bias for part in parts]), norm)
    for part in parts:
        part.weight = None
    return layer
