"""Adds outlier channels to a checkpoint without changing its function.

Trained models have channels whose activations are many times as large as the others', which makes quantization less
accurate. Random and small checkpoints have none. Here some output channels of norms, V and up are multiplied. The
columns that read them are divided (`add_outliers`), or stay as large as any other (`plant_outliers`).
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file

Place = Literal["down", "residual", "v"]
"""Where outliers are planted: the input of the down projection, the outputs of the norms, or V."""

_NORMS = (
    ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
)


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


def shuffle_channels(source: Path, target: Path, *, seed: int = 0) -> Path:
    """Write the checkpoint `source` with its channels in another order as `target` and return it.

    It is the same function, of which other weights share a block: what rounding costs is another draw. The residual
    stream has one order, and each layer its own for V and for what the down projection reads.

    The whole checkpoint is held in memory.
    """
    config = json.loads((source / "config.json").read_text())["text_config"]
    rng = torch.Generator().manual_seed(seed)
    residual = torch.randperm(config["hidden_size"], generator=rng)
    heads, kv_heads, width = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
    orders = []
    for index in range(config["num_hidden_layers"]):
        mlp = torch.randperm(config["intermediate_size"], generator=rng)
        of_heads = torch.stack([torch.randperm(width, generator=rng) for _ in range(kv_heads)])
        v = (of_heads + width * torch.arange(kv_heads)[:, None]).flatten()
        read = of_heads.repeat_interleave(heads // kv_heads, 0)
        o = (read + width * torch.arange(heads)[:, None]).flatten()
        layer = re.escape(_layer(index))
        orders += [
            (rf"{layer}mlp\.(gate|up)_proj\.weight", 0, mlp),
            (rf"{layer}mlp\.down_proj\.weight", 1, mlp),
            (rf"{layer}self_attn\.v_proj\.(weight|bias)", 0, v),
            (rf"{layer}self_attn\.o_proj\.weight", 1, o),
        ]
    orders += [(pattern, axis, residual) for pattern, axis, _ in _RESIDUAL]
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors"))
    for shard in sorted(source.glob("*.safetensors")):
        tensors = load_file(shard)
        for pattern, axis, order in orders:
            for name in [name for name in tensors if re.fullmatch(pattern, name)]:
                tensors[name] = tensors[name].index_select(axis, order)
        save_file(tensors, target / shard.name, metadata={"format": "pt"})
    return target


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
        layer = _layer(index)
        for norm, readers in _NORMS:
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


def plant_outliers(source: Path, target: Path, *, where: Place, ratio: float, channels: int = 4, seed: int = 0) -> Path:
    """Write the checkpoint `source` with outliers that its weights do not show as `target` and return it.

    What `add_outliers` makes has small columns, by which smoothing finds it. Here two channels of a layer carry the
    same large activation, and what reads them has an ordinary column w for one and, but for what the channel
    contributed before, -w for the other. The function is the same, and rounding the two columns leaves an error that
    the large activation multiplies. Every token has these activations, `ratio` times as large as they were. For the
    second channels a layer is made wider: "down" by 64 channels, "v" by one head of keys and values, and for "residual"
    the model has twice the width, every channel twice at half the magnitude.

    The whole checkpoint is held in memory.

    Args:
        source: a checkpoint directory.
        target: a directory to be made.
        where: at the input of the down projection, in the norms' outputs, or in V.
        ratio: how many times as large an activation becomes.
        channels: how many in each layer and norm.
        seed: of the choice of channels and columns.
    """
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors"))
    shards = {shard.name: load_file(shard) for shard in sorted(source.glob("*.safetensors"))}
    tensors = {name: tensor.float() for shard in shards.values() for name, tensor in shard.items()}
    settings = json.loads((source / "config.json").read_text())
    _PLANTERS[where](tensors, settings, _Plant(ratio, channels, torch.Generator().manual_seed(seed)))
    (target / "config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    for file, shard in shards.items():
        save_file({name: tensors[name].contiguous() for name in shard}, target / file, metadata={"format": "pt"})
    return target


@dataclass(frozen=True)
class _Plant:
    """What is planted; arguments as in `plant_outliers`."""

    ratio: float
    channels: int
    rng: torch.Generator

    def draw(self, count: int, channels: int) -> torch.Tensor:
        """Some of `count` channels."""
        return torch.randperm(count, generator=self.rng)[:channels]

    def columns(self, weight: torch.Tensor, count: int) -> torch.Tensor:
        """Ordinary columns [rows, count]: some of the matrix, with their rows in another order."""
        rows, columns = weight.shape
        chosen = torch.randint(columns, (count,), generator=self.rng)
        return weight[torch.randperm(rows, generator=self.rng)][:, chosen]

    def split(self, weight: torch.Tensor, first: torch.Tensor, second: torch.Tensor, share: float = 1.0) -> None:
        """Give column `first` an ordinary one, and `second` what makes the sum what `first` was, over ratio · share."""
        before = weight[:, first].clone()
        ordinary = self.columns(weight, len(first))
        weight[:, first] = ordinary
        weight[:, second] = before / (self.ratio * share) - ordinary


_Tensors = dict[str, torch.Tensor]


def _plant_down(tensors: _Tensors, settings: dict[str, Any], plant: _Plant) -> None:
    config = settings["text_config"]
    width, wider = config["intermediate_size"], 64
    for index in range(config["num_hidden_layers"]):
        gate, up, down = (f"{_layer(index)}mlp.{name}_proj.weight" for name in ("gate", "up", "down"))
        first, second = plant.draw(width, plant.channels), width + plant.draw(wider, plant.channels)
        tensors[up][first] *= plant.ratio
        for name, like in ((gate, plant.draw(width, wider)), (up, None)):
            rows = tensors[name].new_zeros(wider, tensors[name].shape[1]) if like is None else tensors[name][like]
            tensors[name] = torch.cat([tensors[name], rows])
            tensors[name][second] = tensors[name][first]
        tensors[down] = torch.cat([tensors[down], plant.columns(tensors[down], wider)], dim=1)
        plant.split(tensors[down], first, second)
    config["intermediate_size"] = width + wider


def _plant_v(tensors: _Tensors, settings: dict[str, Any], plant: _Plant) -> None:
    config = settings["text_config"]
    heads, kv_heads, width = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
    group = heads // kv_heads
    for index in range(config["num_hidden_layers"]):
        q, k, v, o = (f"{_layer(index)}self_attn.{name}_proj.weight" for name in "qkvo")
        copied = int(plant.draw(kv_heads, 1))
        first, second = plant.draw(width, plant.channels), plant.draw(width, plant.channels)
        tensors[v][copied * width + first] *= plant.ratio
        planted = tensors[v].new_zeros(width, tensors[v].shape[1])
        planted[second] = tensors[v][copied * width + first]
        tensors[v] = torch.cat([tensors[v], planted])
        for name, count in ((q, group), (k, 1)):
            tensors[name] = torch.cat([tensors[name], _heads(tensors[name], copied * count, count, width)])
        tensors[o] = torch.cat([tensors[o], plant.columns(tensors[o], group * width)], dim=1)
        for member in range(group):  # every query head of the group reads the channel
            here, there = (copied * group + member) * width, (heads + member) * width
            plant.split(tensors[o], here + first, there + second)
        for name in ("q", "k", "v", "o"):
            assert f"{_layer(index)}self_attn.{name}_proj.bias" not in tensors, "biases are not copied"  # noqa: S101
    config["num_attention_heads"], config["num_key_value_heads"] = heads + group, kv_heads + 1


def _plant_residual(tensors: _Tensors, settings: dict[str, Any], plant: _Plant) -> None:
    config = settings["text_config"]
    hidden = config["hidden_size"]
    other = torch.randperm(hidden, generator=plant.rng)  # the order of the second half: other blocks are rounded
    place = torch.argsort(other)
    for pattern, axis, factor in _RESIDUAL:
        for name in [name for name in tensors if re.fullmatch(pattern, name)]:
            tensor = tensors[name] * factor
            tensors[name] = torch.cat([tensor, tensor.index_select(axis, other)], dim=axis)
    for index in range(config["num_hidden_layers"]):
        for norm, readers in _NORMS:
            first = plant.draw(hidden, plant.channels)
            second = hidden + place[first]
            for chosen in (first, second):
                tensors[f"{_layer(index)}{norm}.weight"][chosen] *= plant.ratio
            for reader in readers:
                plant.split(tensors[f"{_layer(index)}{reader}.weight"], first, second, share=0.5)
    config["hidden_size"] = settings["vision_config"]["out_hidden_size"] = 2 * hidden


# Which tensors have an axis of the residual stream, which axis that is, and their factor where it is doubled.
_RESIDUAL = (
    (r"model\.visual\.(merger|deepstack_merger_list\.\d+)\.linear_fc2\.(weight|bias)", 0, 1.0),
    (r".*\.layers\.\d+\.(self_attn\.o|mlp\.down)_proj\.(weight|bias)", 0, 1.0),
    (r".*\.layers\.\d+\.(self_attn\.[qkv]|mlp\.gate|mlp\.up)_proj\.weight", 1, 1.0),
    (r".*\.layers\.\d+\.\w+_layernorm\.weight|.*\.language_model\.norm\.weight", 0, 0.5),
    (r"lm_head\.weight|.*\.embed_tokens\.weight", 1, 1.0),
)


def _heads(weight: torch.Tensor, first: int, count: int, width: int) -> torch.Tensor:
    return weight[first * width : (first + count) * width]


def _layer(index: int) -> str:
    return f"model.language_model.layers.{index}."


_PLANTERS = {"down": _plant_down, "residual": _plant_residual, "v": _plant_v}
