"""Outlier channels evened out before rounding, without changing the function by a single bit.

Where a channel's activations are many times as large as the others' and the columns that read it as many times smaller,
both suffer from rounding: the activations share one step with the outlier, the small columns share one with their
block. A channel's factor may be moved from one side to the other wherever nothing but a product stands between them:
from a norm to the projections that read it, from V to the output projection, from up to down, and from the norm of the
keys, which may be stored in 8 bits, to the norm of the queries, which are not.

The rule looks at weights alone. A channel whose column is far from the others' is given a column of their magnitude,
so that its activation is as large as what it contributes. Factors are powers of two, which no floating-point product or
sum rounds: the graph before rounding is the same, bit for bit. A channel whose column is within a factor of four of the
median is left as the training made it.
"""

from collections.abc import Iterable

import torch
from torch import nn
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    Qwen3VLTextAttention,
    Qwen3VLTextDecoderLayer,
    Qwen3VLTextRMSNorm,
)

_FEWEST = 2.0  # a factor of four: below, nothing was gained, and weights trained for their rounding lost by it
_MOST = 10.0  # a column of zeros asks for an infinite factor


@torch.no_grad()
def smooth_layer(layer: Qwen3VLTextDecoderLayer) -> None:
    """Even out one layer's channels, in place."""
    attention, mlp = layer.self_attn, layer.mlp
    # V and up come before the norms: a large row of theirs would speak for every column of the norm's readers.
    factors = column_factors([mlp.down_proj.weight])
    scale_outputs(mlp.up_proj, factors)
    divide_columns(mlp.down_proj, factors)

    # One channel of V is read by every query head of its group: o_proj is [hidden, kv heads · group · head_dim].
    hidden, group, width = attention.o_proj.out_features, attention.num_key_value_groups, attention.head_dim
    columns = attention.o_proj.weight.view(hidden, -1, group, width).transpose(1, 2)
    factors = column_factors([columns.reshape(hidden * group, -1)])
    scale_outputs(attention.v_proj, factors)
    divide_columns(attention.o_proj, factors.view(-1, 1, width).expand(-1, group, -1).reshape(-1))

    for norm, readers in (
        (layer.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
        (layer.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)),
    ):
        factors = column_factors(reader.weight for reader in readers)
        scale_outputs(norm, factors)
        for reader in readers:
            divide_columns(reader, factors)
    smooth_keys(attention)


@torch.no_grad()
def smooth_keys(attention: Qwen3VLTextAttention) -> None:
    """Even out the keys' channels, in place: they may be stored in 8 bits, and queries are not.

    The rotation by a position mixes a channel with the one half a head further, so both get the same factor.
    """
    factors = column_factors([attention.k_norm.weight.view(2, -1)]).repeat(2)
    scale_outputs(attention.q_norm, factors)
    scale_outputs(attention.k_norm, 1 / factors)


def column_factors(weights: Iterable[torch.Tensor]) -> torch.Tensor:
    """How much larger than usual each column is, as a power of two.

    Args:
        weights: matrices [rows, columns] that are stacked; each may be made as it is asked for.

    Returns:
        float32 [columns]: the root mean square of a column over the median of all columns', rounded to a power of two;
        1 where it is within a factor of four.
    """
    squares = sum(weight.float().square().sum(dim=0) for weight in weights)
    assert isinstance(squares, torch.Tensor)  # noqa: S101  # there is at least one matrix
    median = squares.median()
    if median <= 0:
        return torch.ones_like(squares)
    octaves = (torch.log2(squares / median) / 2).clamp(-_MOST, _MOST)
    return torch.exp2(torch.where(octaves.abs() < _FEWEST, 0, octaves.round()))


def scale_outputs(module: nn.Linear | Qwen3VLTextRMSNorm, factors: torch.Tensor) -> None:
    """Multiply the outputs of a linear layer or a norm by `factors` [outputs], in place."""
    for name, parameter in module.named_parameters():
        shape = (-1,) + (1,) * (parameter.dim() - 1)
        setattr(module, name, _product(parameter, factors.view(shape)))


def divide_columns(linear: nn.Linear, factors: torch.Tensor) -> None:
    """Divide a linear layer's columns by `factors` [inputs], in place."""
    linear.weight = _product(linear.weight, 1 / factors)


def _product(parameter: torch.Tensor, factors: torch.Tensor) -> nn.Parameter:
    # float16 has a narrow range of exponents and would lose digits; bfloat16 has float32's.
    data = parameter.data.float() if parameter.dtype == torch.float16 else parameter.data
    return nn.Parameter(data.mul_(factors.to(data.dtype)), requires_grad=False)
