"""Adds outlier channels to a checkpoint without changing its function.

Trained models have channels whose activations are many times as large as the others', which makes quantization less
accurate. Random and small checkpoints have none. Here some output channels of norms, V and up are multiplied, and the
columns that read them are divided.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file


def add_outliers(source: Path, target: Path, *, largest: float = 60.0, channels: int = 4, seed: int = 0) -> Path:
    """Write the checkpoint `source` with outliers as `target` and return it.

    In every layer, `channels` outliers are selected at random for each of the two norms, for V and for up, with factors
    from a quarter of `largest` to `largest`. Changed tensors are stored in float32, to keep their precision.

    Args:
        source: a checkpoint directory.
        target: the target directory.
        largest: the largest factor.
        channels: number of outliers for each.
        seed: seed of the selection.
    """
    config = json.loads((source / "config.json").read_text())["text_config"]
    return _write(source, target, _factors(config, _Draw(largest, channels, seed)))


def add_encoder_outliers(
    source: Path, target: Path, *, largest: float = 60.0, channels: int = 4, seed: int = 0
) -> Path:
    """Write the checkpoint `source` with outliers in its encoder as `target` and return it.

    They are selected as in `add_outliers`, for the norms, for V, for the feed-forward part after its GELU, and for the
    norms of the mergers. A factor before a GELU changes the function: little more than the positive part of the channel
    is left. So the encoder must be compared with itself in float32.

    Args:
        source: a checkpoint directory.
        target: the target directory.
        largest: the largest factor.
        channels: number of outliers for each.
        seed: seed of the selection.
    """
    config = json.loads((source / "config.json").read_text())["vision_config"]
    return _write(source, target, _encoder_factors(config, _Draw(largest, channels, seed)))


class _Draw:
    """Draws factors; arguments as in `add_outliers`."""

    def __init__(self, largest: float, channels: int, seed: int) -> None:
        self._largest, self._channels = largest, channels
        self._rng = torch.Generator().manual_seed(seed)

    def __call__(self, count: int) -> torch.Tensor:
        factors = torch.ones(count)
        outliers = self._largest * torch.logspace(0, -2, self._channels, base=2.0)
        factors[torch.randperm(count, generator=self._rng)[: self._channels]] = outliers
        return factors


def _write(source: Path, target: Path, factors: dict[str, torch.Tensor]) -> Path:
    """The checkpoint with its tensors multiplied."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors"))
    for shard in source.glob("*.safetensors"):
        tensors = load_file(shard)
        for name in tensors.keys() & factors.keys():
            tensors[name] = tensors[name].float() * factors[name]
        save_file(tensors, target / shard.name, metadata={"format": "pt"})
    return target


def _factors(config: dict[str, Any], drawn: _Draw) -> dict[str, torch.Tensor]:
    """The factors of each tensor, in a shape that broadcasts."""
    kv_heads, width = config["num_key_value_heads"], config["head_dim"]
    group = config["num_attention_heads"] // kv_heads

    factors: dict[str, torch.Tensor] = {}
    for index in range(config["num_hidden_layers"]):
        layer = f"model.language_model.layers.{index}."
        for norm, readers in (
            ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
            ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
        ):
            by = drawn(config["hidden_size"])
            factors[f"{layer}{norm}.weight"] = by
            factors |= {f"{layer}{reader}.weight": 1 / by for reader in readers}

        by = drawn(config["intermediate_size"])
        factors[f"{layer}mlp.up_proj.weight"] = factors[f"{layer}mlp.up_proj.weight"] * by[:, None]
        factors[f"{layer}mlp.down_proj.weight"] = 1 / by

        by = drawn(kv_heads * width)
        factors[f"{layer}self_attn.v_proj.weight"] = factors[f"{layer}self_attn.v_proj.weight"] * by[:, None]
        factors[f"{layer}self_attn.v_proj.bias"] = by  # if there is one
        # Every query head of a group reads the same channels of V.
        read = by.view(kv_heads, 1, width).expand(-1, group, -1).reshape(-1)
        factors[f"{layer}self_attn.o_proj.weight"] = 1 / read
    return factors


def _encoder_factors(config: dict[str, Any], drawn: _Draw) -> dict[str, torch.Tensor]:
    """The same for the encoder."""
    hidden, block = config["hidden_size"], config["spatial_merge_size"] ** 2
    factors: dict[str, torch.Tensor] = {}

    def of_norm(norm: str, reader: str, width: int, repeated: int = 1) -> None:
        by = drawn(width)
        factors[f"{norm}.weight"] = factors[f"{norm}.bias"] = by
        factors[f"{reader}.weight"] = 1 / by.repeat(repeated)

    for index in range(config["depth"]):
        layer = f"model.visual.blocks.{index}."
        of_norm(f"{layer}norm1", f"{layer}attn.qkv", hidden)
        of_norm(f"{layer}norm2", f"{layer}mlp.linear_fc1", hidden)

        by = drawn(hidden)
        rows = torch.cat([torch.ones(2 * hidden), by])  # V comes last
        factors[f"{layer}attn.qkv.weight"] = factors[f"{layer}attn.qkv.weight"] * rows[:, None]
        factors[f"{layer}attn.qkv.bias"] = rows
        factors[f"{layer}attn.proj.weight"] = 1 / by

        by = drawn(config["intermediate_size"])
        factors[f"{layer}mlp.linear_fc1.weight"] = factors[f"{layer}mlp.linear_fc1.weight"] * by[:, None]
        factors[f"{layer}mlp.linear_fc1.bias"] = by
        factors[f"{layer}mlp.linear_fc2.weight"] = 1 / by
    of_norm("model.visual.merger.norm", "model.visual.merger.linear_fc1", hidden, repeated=block)
    for level in range(len(config["deepstack_visual_indexes"])):
        merger = f"model.visual.deepstack_merger_list.{level}."
        of_norm(f"{merger}norm", f"{merger}linear_fc1", hidden * block)
    return factors
