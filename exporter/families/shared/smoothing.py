"""Outlier channels evened out before rounding, without changing the function by a single bit.

Where a channel's activations are many times as large as the others' and the columns that read it as many times smaller,
both suffer from rounding: the activations share one step with the outlier, the small columns share one with their
block. A channel's factor may be moved from one side to the other wherever nothing but a product stands between them:
from a norm to the projections that read it, from V to the output projection, from up to down. Such a place is a site.
Keys may be stored in 8 bits, and queries are not: factors of the keys' channels are moved to the queries.

Factors are powers of two, which no floating-point product or sum rounds: the graph before rounding is the same, bit for
bit. A calibrated export chooses them (`exporter.choice`). The rule for the others looks at weights alone: a channel
whose column is far from the others' is given a column of their magnitude, so that its activation is as large as what it
contributes; one within a factor of four of the median is left as the training made it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from exporter.recipe import Kind

from .adapter import adapters

_FEWEST = 2.0  # a factor of four: below, nothing was gained, and weights trained for their rounding lost by it
_MOST = 10.0  # a column of zeros asks for an infinite factor

HEAD = "head"
"""The site of the final norm and the output head."""


@dataclass(frozen=True)
class Site:
    """Where a channel's factor may be moved.

    Attributes:
        name: of the site, the same in every layer.
        source: what gives the channels.
        readers: what reads them, by kind of matrix as recipes name them.
        groups: (kv heads, query heads of each, width), where a channel of V is read by every query head of its group:
            the readers are then [rows, kv heads · group · width] and the channels kv heads · width.
        adapter: the A of an adapter that reads them, too.
    """

    name: str
    source: nn.Module
    readers: Mapping[Kind, nn.Linear]
    groups: tuple[int, int, int] | None = None
    adapter: nn.Linear | None = None

    def columns(self, values: torch.Tensor) -> torch.Tensor:
        """Rows over the readers' inputs [rows, inputs] as rows over channels [rows · group, channels]."""
        if self.groups is None:
            return values
        heads, group, width = self.groups
        return values.view(-1, heads, group, width).transpose(1, 2).reshape(-1, heads * width)

    def inputs(self, factors: torch.Tensor) -> torch.Tensor:
        """Factors of channels [channels] as factors of the readers' inputs [inputs]."""
        if self.groups is None:
            return factors
        heads, group, width = self.groups
        return factors.view(heads, 1, width).expand(-1, group, -1).reshape(-1)

    def apply(self, factors: torch.Tensor) -> None:
        """Multiply what the source gives by `factors` [channels] and divide what reads it, in place."""
        scale_outputs(self.source, factors)
        for reader in self.readers.values():
            divide_columns(reader, self.inputs(factors))
        if self.adapter is not None:
            divide_columns(self.adapter, self.inputs(factors))


def sites(layer: Any) -> tuple[Site, ...]:
    """The sites of a layer.

    V and up come before the norms: a large row of theirs would speak for every column of the norm's readers.
    """
    attention, mlp = layer.self_attn, layer.mlp
    heads = attention.v_proj.out_features // attention.head_dim
    found = dict(adapters(layer).values())
    return (
        Site("down", mlp.up_proj, {"down": mlp.down_proj}, adapter=found.get("down")),
        Site(
            "o",
            attention.v_proj,
            {"o": attention.o_proj},
            groups=(heads, attention.num_key_value_groups, attention.head_dim),
            adapter=found.get("o"),
        ),
        Site(
            "qkv",
            layer.input_layernorm,
            {"q": attention.q_proj, "k": attention.k_proj, "v": attention.v_proj},
            adapter=found.get("qkv"),
        ),
        Site(
            "gate_up",
            layer.post_attention_layernorm,
            {"gate": mlp.gate_proj, "up": mlp.up_proj},
            adapter=found.get("gate_up"),
        ),
    )


@torch.no_grad()
def smooth_layer(layer: Any) -> None:
    """Even out one layer's channels by the rule for weights, in place."""
    for site in sites(layer):
        site.apply(column_factors(site.columns(reader.weight) for reader in site.readers.values()))


@torch.no_grad()
def smooth_keys(layer: Any) -> None:
    """Even out the keys' channels, in place: they may be stored in 8 bits, and queries are not.

    The rotation by a position mixes a channel with the one half of what is rotated further, so both get the same
    factor. Where keys
    are normalized, the norm's weight is their magnitude, the same for every head.
    """
    attention = layer.self_attn
    if hasattr(attention, "k_norm"):
        factors = column_factors([attention.k_norm.weight.view(2, -1)]).repeat(2)
        scale_outputs(attention.q_norm, factors)
        scale_outputs(attention.k_norm, 1 / factors)
        return
    width, group = attention.head_dim, attention.num_key_value_groups
    rotated = getattr(attention, "rotary_dim", width)
    heads = _key_magnitudes(layer).view(-1, width)
    of_heads = torch.stack([_pair_factors(head, rotated) for head in heads])  # [kv heads, width]
    scale_outputs(attention.q_proj, of_heads.repeat_interleave(group, dim=0).flatten())
    scale_outputs(attention.k_proj, 1 / of_heads.flatten())


def _pair_factors(magnitudes: torch.Tensor, rotated: int) -> torch.Tensor:
    """Factors of one head's channels [width], of which the first `rotated` are rotated in pairs."""
    rest = magnitudes[rotated:].expand(2, -1)
    factors = column_factors([torch.cat([magnitudes[:rotated].view(2, -1), rest], dim=1)])
    return torch.cat([factors[: rotated // 2], factors])


def _key_magnitudes(layer: Any) -> torch.Tensor:
    """Root mean square of each channel of the projected keys, float32 [kv heads · width].

    Estimated for inputs that the norm before leaves independent of each other; the bias adds to every token alike.
    """
    keys = layer.self_attn.k_proj
    squares: torch.Tensor = (keys.weight.float() * layer.input_layernorm.weight.float()).square().sum(dim=1)
    if keys.bias is not None:
        squares = squares + keys.bias.float().square()
    return squares.sqrt()


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


def scale_outputs(module: nn.Module, factors: torch.Tensor) -> None:
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
