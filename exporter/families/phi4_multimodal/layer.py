"""A layer of the language model with its matrices apart, as recipes, calibration and smoothing name them.

Checkpoints store Q, K and V as one matrix, and gate and up as one. The layer computes what transformers' own does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.models.phi4_multimodal.modeling_phi4_multimodal import (
    Phi4MultimodalAttention,
    Phi4MultimodalDecoderLayer,
    Phi4MultimodalMLP,
)


class Attention(Phi4MultimodalAttention):
    """Attention with three matrices instead of one."""

    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        del self._modules["qkv_proj"]
        keys = config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, config.num_attention_heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, keys, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, keys, bias=False)
        self.rotary_dim = int(self.head_dim * config.rope_parameters["partial_rotary_factor"])

    def qkv_proj(self, states: torch.Tensor) -> torch.Tensor:  # type: ignore[override]  # called like the module
        """Queries, keys and values, side by side."""
        return torch.cat([self.q_proj(states), self.k_proj(states), self.v_proj(states)], dim=-1)


class Mlp(Phi4MultimodalMLP):
    """The MLP with gate and up apart."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)  # type: ignore[no-untyped-call]
        del self._modules["gate_up_proj"]
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)

    def gate_up_proj(self, states: torch.Tensor) -> torch.Tensor:  # type: ignore[override]  # called like the module
        """Gate and up, side by side."""
        return torch.cat([self.gate_proj(states), self.up_proj(states)], dim=-1)


class SplitDecoderLayer(Phi4MultimodalDecoderLayer):  # type: ignore[no-untyped-call]
    """A layer of such parts; the builder knows layers by the end of this name."""

    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.self_attn = Attention(config, layer_idx)
        self.mlp = Mlp(config)
