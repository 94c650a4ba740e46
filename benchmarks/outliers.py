"""A checkpoint with outlier channels that is the same function.

Trained models have channels whose activations are many times as large as the others', and rounding suffers from them.
Random and small checkpoints have none. Here a norm's weights are multiplied and the columns that read them divided.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

_LAYERS = "model.language_model.layers."
_READERS = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}


def add_outliers(source: Path, target: Path, *, largest: float = 60.0, channels: int = 4, seed: int = 0) -> Path:
    """Write `source` with outliers as `target` and return it.

    In every layer, each of the two norms gets `channels` outliers, drawn for that norm, with factors that go evenly on a
    logarithmic scale from a quarter of `largest` to `largest`. Tensors that change are stored in float32, so that dividing loses nothing
    that float32 would keep.

    Args:
        source: a checkpoint directory with one `model.safetensors`.
        target: a directory to be made.
        largest: the largest factor.
        channels: how many channels of each norm.
        seed: of the choice of channels.
    """
    shutil.copytree(source, target)
    tensors = load_file(source / "model.safetensors")
    layers = json.loads((source / "config.json").read_text())["text_config"]["num_hidden_layers"]
    rng = torch.Generator().manual_seed(seed)
    for layer in range(layers):
        for norm, readers in _READERS.items():
            name = f"{_LAYERS}{layer}.{norm}.weight"
            weight = tensors[name].float()
            factors = torch.ones_like(weight)
            chosen = torch.randperm(len(weight), generator=rng)[:channels]
            factors[chosen] = torch.logspace(0, -2, channels, base=2.0) * largest
            tensors[name] = weight * factors
            for reader in readers:
                name = f"{_LAYERS}{layer}.{reader}.weight"
                tensors[name] = tensors[name].float() / factors
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target
