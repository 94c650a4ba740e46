"""The training forward pass: on the stock model's weights, to the same values, in fewer passes over memory.

Matrices of this size cost a CPU little. What takes the time is everything between them, and the conversions between
bfloat16 and float32. So a norm is three passes here, a rotation of two halves is a product with a small matrix, weights
of norms are folded into the matrices that follow, and images of a batch, which have the same number of patches, are
one dense batch. Logits are computed only where there is something to learn.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import Qwen3VLForConditionalGeneration
from transformers.vision_utils import get_vision_interpolation_indices_and_weights, get_vision_position_ids

from recipes.demo_model.data import IGNORED, Batch, Part
from recipes.demo_model.quantize import straight_through
from recipes.demo_model.sight import SightHeads


@dataclass(frozen=True)
class Arithmetic:
    """What is computed with: the type of activations between two residual sums, and of the matrices."""

    dtype: torch.dtype = torch.bfloat16
    rounded: bool = False
    """Whether the text model's matrices are rounded to INT4, as a bundle's are."""

    def of_text(self, linear: nn.Linear) -> torch.Tensor:
        """The matrix of a layer of the text model, in float32."""
        weight: torch.Tensor = linear.weight
        return straight_through(weight) if self.rounded else weight

    def normed(self, norm: Any, linears: Sequence[nn.Linear], value: torch.Tensor) -> torch.Tensor:
        """A norm of the text model and the layers that follow it, side by side."""
        matrix = torch.cat([self.of_text(linear) for linear in linears]) * norm.weight
        normed = _Normed.apply(value, norm.variance_epsilon, self.dtype)  # type: ignore[no-untyped-call]
        return functional.linear(normed, matrix.to(self.dtype))

    def linear(self, linear: nn.Linear, value: torch.Tensor) -> torch.Tensor:
        """A layer of the vision tower."""
        return functional.linear(value, linear.weight.to(self.dtype), linear.bias.to(self.dtype))


class _Normed(torch.autograd.Function):
    """Values over their root mean square along the last axis; the weight is left to the matrix that follows."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, eps: float, dtype: torch.dtype) -> torch.Tensor:
        length: torch.Tensor = torch.linalg.vector_norm(value, dim=-1, keepdim=True)
        scale = (length.square_() / value.shape[-1]).add_(eps).rsqrt_()
        normed = (value * scale).to(dtype)
        ctx.save_for_backward(normed, scale)
        return normed

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        normed, scale = ctx.saved_tensors
        along = (gradient * normed).mean(-1, keepdim=True)
        return torch.addcmul(gradient, normed, along, value=-1).to(scale.dtype).mul_(scale), None, None


class _NormedHeads(torch.autograd.Function):
    """The same for many short vectors, where a product with a matrix of ones is the quickest sum."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, eps: float) -> torch.Tensor:
        mean = torch.full((value.shape[-1],) * 2, 1 / value.shape[-1], dtype=value.dtype)
        scale = ((value * value) @ mean).add_(eps).rsqrt_()
        normed = value * scale
        ctx.save_for_backward(normed, scale, mean)
        return normed

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        normed, scale, mean = ctx.saved_tensors
        along = (gradient * normed) @ mean
        return torch.addcmul(gradient, normed, along, value=-1).mul_(scale), None


def _quarter_turn(width: int, dtype: torch.dtype) -> torch.Tensor:
    """The matrix that turns [a, b], two halves, into [-b, a]."""
    one = torch.eye(width // 2, dtype=dtype)
    return torch.cat([torch.cat([torch.zeros_like(one), one], 1), torch.cat([-one, torch.zeros_like(one)], 1)])


def _attention_mask(turns: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What is added to scores, [batch, 1, length, length]: no position reads what comes later, nor another turn."""
    length = turns.shape[1]
    others = (turns[:, None, :] != 0) & (turns[:, None, :] != turns[:, :, None])
    others |= torch.ones(length, length, dtype=torch.bool).triu(1)
    return torch.zeros(others.shape, dtype=dtype).masked_fill_(others, float("-inf"))[:, None]


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Attention; queries are scaled. [batch, heads, queries, head_dim] from keys [batch, heads, keys, head_dim]."""
    scores = query @ key.transpose(-1, -2)
    if mask is not None:
        scores += mask
    return torch.softmax(scores, -1) @ value


def _looked(tower: Any, batch: Batch, arithmetic: Arithmetic) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Main and DeepStack features of all images, each [tokens, width]."""
    dtype, merge = arithmetic.dtype, tower.spatial_merge_size
    count, width = len(batch.grid), tower.config.hidden_size
    if not count:
        nothing = torch.zeros(0, tower.config.out_hidden_size, dtype=dtype)
        return nothing, [nothing] * len(tower.deepstack_merger_list)
    kernel = tower.patch_embed.proj
    embedded = functional.linear(
        batch.pixel_values.to(dtype), kernel.weight.flatten(1).to(dtype), kernel.bias.to(dtype)
    )
    taps, shares = get_vision_interpolation_indices_and_weights(
        batch.grid,
        num_grid_per_side=tower.num_grid_per_side,
        mode=tower.interpolation_mode,
        align_corners=tower.interpolation_align_corners,
        spatial_merge_size=merge,
    )
    places = (tower.pos_embed(taps) * shares[:, :, None]).sum(1)
    hidden = (embedded + places).view(count, -1, width)
    heads = tower.config.num_heads
    head_dim = width // heads
    cos, sin = (
        table.view(count, 1, -1, head_dim).to(dtype)
        for table in tower.rotary_pos_emb(hidden, get_vision_position_ids(batch.grid, merge))
    )
    turn = _quarter_turn(head_dim, dtype)

    def attention(block: Any, value: torch.Tensor) -> torch.Tensor:
        parts = arithmetic.linear(block.attn.qkv, value).view(count, -1, 3, heads, head_dim)
        query, key, value = (part.transpose(1, 2).contiguous() for part in parts.unbind(2))
        query = query * block.attn.scaling
        query, key = (torch.addcmul(part * cos, part @ turn, sin) for part in (query, key))
        mixed = _attend(query, key, value, None)
        return arithmetic.linear(block.attn.proj, mixed.transpose(1, 2).reshape(count, -1, width))

    def perceptron(block: Any, value: torch.Tensor) -> torch.Tensor:
        # In bfloat16, whose steps are coarser than the two are apart, the exact GELU takes a fifth of the time.
        approximate = "tanh" if dtype is torch.float32 else "none"
        inner = functional.gelu(arithmetic.linear(block.mlp.linear_fc1, value), approximate=approximate)
        return arithmetic.linear(block.mlp.linear_fc2, inner)

    def merged(merger: Any, value: torch.Tensor) -> torch.Tensor:
        joined = merger.hidden_size
        value = value.reshape(-1, joined) if merger.use_postshuffle_norm else value
        value = merger.norm(value).to(dtype).reshape(-1, joined)
        return arithmetic.linear(merger.linear_fc2, functional.gelu(arithmetic.linear(merger.linear_fc1, value)))

    deepstack = []
    for number, block in enumerate(tower.blocks):
        hidden = hidden + attention(block, block.norm1(hidden).to(dtype))
        hidden = hidden + perceptron(block, block.norm2(hidden).to(dtype))
        if number in tower.deepstack_visual_indexes:
            merger = tower.deepstack_merger_list[tower.deepstack_visual_indexes.index(number)]
            deepstack.append(merged(merger, hidden))
    return merged(tower.merger, hidden), deepstack


def _read(
    text: Any, batch: Batch, main: torch.Tensor, deepstack: Sequence[torch.Tensor], arithmetic: Arithmetic
) -> torch.Tensor:
    """The text model's last residual sums, [batch, length, width]: neither normed nor weighted."""
    dtype, config = arithmetic.dtype, text.config
    rows, length = batch.input_ids.shape
    seen = batch.image_mask.flatten().nonzero().flatten()
    hidden: torch.Tensor = text.embed_tokens(batch.input_ids).flatten(0, 1)
    hidden = hidden.index_copy(0, seen, main.to(hidden.dtype))
    heads, shared, head_dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    cos, sin = (table[:, None].to(dtype) for table in text.rotary_emb(hidden, batch.position_ids))
    turn = _quarter_turn(head_dim, dtype)
    mask = _attention_mask(batch.turns, dtype).repeat(1, 1, heads // shared, 1)

    def turned(value: torch.Tensor, norm: Any, scale: float) -> torch.Tensor:
        value = _NormedHeads.apply(value, norm.variance_epsilon)  # type: ignore[no-untyped-call]
        weight = torch.diag((norm.weight * scale).to(dtype))
        return torch.addcmul((value @ weight) * cos, value @ (weight @ turn), sin)

    def attention(layer: Any, value: torch.Tensor) -> torch.Tensor:
        at = layer.self_attn
        parts = arithmetic.normed(layer.input_layernorm, (at.q_proj, at.k_proj, at.v_proj), value)
        query, key, value = (
            part.transpose(1, 2).contiguous()
            for part in torch.split(parts.view(rows, length, -1, head_dim), [heads, shared, shared], 2)
        )
        # The heads that share a key are so many more queries of it.
        query = turned(query, at.q_norm, at.scaling).view(rows, shared, -1, head_dim)
        mixed = _attend(query, turned(key, at.k_norm, 1.0), value, mask)
        mixed = mixed.view(rows, heads, length, head_dim).transpose(1, 2).reshape(rows * length, -1)
        return functional.linear(mixed, arithmetic.of_text(at.o_proj).to(dtype))

    def perceptron(layer: Any, value: torch.Tensor) -> torch.Tensor:
        pair = arithmetic.normed(layer.post_attention_layernorm, (layer.mlp.gate_proj, layer.mlp.up_proj), value)
        gate, up = pair.chunk(2, -1)
        return functional.linear(functional.silu(gate) * up, arithmetic.of_text(layer.mlp.down_proj).to(dtype))

    for number, layer in enumerate(text.layers):
        hidden = hidden + attention(layer, hidden)
        hidden = hidden + perceptron(layer, hidden)
        if number < len(deepstack):
            hidden = hidden.index_add(0, seen, deepstack[number].to(hidden.dtype))
    return hidden.view(rows, length, -1)


@dataclass(frozen=True)
class Losses:
    """Mean losses of a batch, and the share of the answers' tokens that the model would have said."""

    answers: torch.Tensor
    sight: torch.Tensor
    accuracy: torch.Tensor


def losses(
    model: Qwen3VLForConditionalGeneration,
    batch: Batch,
    heads: SightHeads | None = None,
    *,
    part: Part = Part.BOTH,
    arithmetic: Arithmetic | None = None,
) -> Losses:
    """The forward pass on a batch. The loss of what does not learn is zero, and so is that of sight without heads."""
    arithmetic = arithmetic or Arithmetic()
    zero = torch.zeros(())
    with torch.no_grad() if part is Part.TALKING else nullcontext():
        main, deepstack = _looked(model.model.visual, batch, arithmetic)
    sight = zero
    if heads is not None and part is not Part.TALKING:
        sight = heads(main.float(), [level.float() for level in deepstack], batch.cells)
    if part is Part.LOOKING:
        return Losses(zero, sight, zero)
    text: Any = model.model.language_model
    hidden = _read(text, batch, main, deepstack, arithmetic)
    learnt = batch.labels != IGNORED
    logits = arithmetic.normed(text.norm, (model.lm_head,), hidden[learnt])
    labels = batch.labels[learnt]
    accuracy = (logits.argmax(-1) == labels).float().mean()
    return Losses(functional.cross_entropy(logits.float(), labels), sight, accuracy)
