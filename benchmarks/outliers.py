"""A checkpoint with outlier channels that is the same function.

Trained models have channels whose activations are many times as large as the others', and rounding suffers from them.
Random and small checkpoints have none. Here what a norm, V or up gives is multiplied in some channels, and the columns
that read those are divided.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

_LAYERS = "model.language_model.layers."


def add_outliers(source: Path, target: Path, *, largest: float = 60.0, channels: int = 4, seed: int = 0) -> Path:
    """Write `source` with outliers as `target` and return it.

    In every layer, `channels` outliers are drawn for each of the two norms, for V and for up, with factors from a quarter
    of `largest` to `largest`. Tensors that change are stored in float32, so that the division loses nothing that float32
    would keep.

    Args:
        source: a checkpoint directory with one `model.safetensors`.
        target: a directory to be made.
        largest: the largest factor.
        channels: how many for each.
        seed: of the choice of channels.
    """
    shutil.copytree(source, target)
    tensors = load_file(source / "model.safetensors")
    text = json.loads((source / "config.json").read_text())["text_config"]
    kv_heads, width = text["num_key_value_heads"], text["head_dim"]
    group = text["num_attention_heads"] // kv_heads
    rng = torch.Generator().manual_seed(seed)

    def factors(count: int) -> torch.Tensor:
        drawn = torch.ones(count)
        chosen = torch.randperm(count, generator=rng)[:channels]
        drawn[chosen] = largest * torch.logspace(0, -2, channels, base=2.0)
        return drawn

    def multiply(name: str, by: torch.Tensor) -> None:
        if name in tensors:  # V may have a bias
            tensors[name] = tensors[name].float() * by

    for index in range(text["num_hidden_layers"]):
        layer = f"{_LAYERS}{index}."
        for norm, readers in (
            ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
            ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
        ):
            drawn = factors(text["hidden_size"])
            multiply(f"{layer}{norm}.weight", drawn)
            for reader in readers:
                multiply(f"{layer}{reader}.weight", 1 / drawn)

        drawn = factors(text["intermediate_size"])
        multiply(f"{layer}mlp.up_proj.weight", drawn[:, None])
        multiply(f"{layer}mlp.down_proj.weight", 1 / drawn)

        drawn = factors(kv_heads * width)
        multiply(f"{layer}self_attn.v_proj.weight", drawn[:, None])
        multiply(f"{layer}self_attn.v_proj.bias", drawn)
        # Every query head of a group reads the same channels of V.
        read = drawn.view(kv_heads, 1, width).expand(-1, group, -1).reshape(-1)
        multiply(f"{layer}self_attn.o_proj.weight", 1 / read)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target
