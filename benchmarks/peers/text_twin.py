"""The language model of a Qwen3-VL checkpoint as a Qwen3 one: `python -m benchmarks.peers.text_twin FROM TO`.

On text both models compute the same: the three M-RoPE positions of a text token are equal, which is RoPE, and without
pictures nothing is added to any layer. Every engine supports Qwen3, so all can be compared on the same weights.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file

from benchmarks.errors import BenchError
from benchmarks.peers import convert

_TEXT = "model.language_model."
_HEAD = "lm_head.weight"
_KEPT = (
    "attention_bias",
    "bos_token_id",
    "eos_token_id",
    "head_dim",
    "hidden_act",
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "rms_norm_eps",
    "vocab_size",
)


def make(source: Path, target: Path) -> Path:
    """Write the twin, tensor by tensor of each shard, completely or not at all.

    Args:
        source: A Qwen3-VL checkpoint.
        target: Target directory; it must not exist.

    Returns:
        `target`.

    Raises:
        BenchError: `source` is not such a checkpoint, or `target` exists.
    """
    if target.exists():
        raise BenchError(f"{target} exists: name another directory")
    shards = sorted(source.glob("*.safetensors"))
    try:
        config = json.loads((source / "config.json").read_text(encoding="utf-8"))
        twin = _config(config)
    except (OSError, KeyError, ValueError) as error:
        raise BenchError(f"{source} is not a Qwen3-VL checkpoint") from error
    if not shards:
        raise BenchError(f"{source} has no weights (*.safetensors)")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
        fresh = Path(scratch) / "twin"
        fresh.mkdir(mode=0o755)
        _write_weights(shards, fresh)
        (fresh / "config.json").write_text(json.dumps(twin, indent=2) + "\n", encoding="utf-8")
        for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "generation_config.json"):
            if (source / name).is_file():
                shutil.copyfile(source / name, fresh / name)
        fresh.rename(target)
    return target


def _config(config: dict[str, Any]) -> dict[str, Any]:
    """The config in the form of transformers 4.57, which 5 reads and optimum-intel requires."""
    text = config["text_config"]
    rope = text.get("rope_parameters") or text  # 5 has it in an object of its own, 4.57 at the top level
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        **{name: text[name] for name in _KEPT if name in text},
        "rope_theta": rope["rope_theta"],
        "rope_scaling": None,
        "tie_word_embeddings": config.get("tie_word_embeddings", text.get("tie_word_embeddings", False)),
        "torch_dtype": config.get("dtype") or config.get("torch_dtype") or text.get("dtype", "bfloat16"),
        "use_sliding_window": False,
    }


def _write_weights(shards: Sequence[Path], target: Path) -> None:
    places, size = {}, 0
    for shard in shards:
        tensors = {}
        with safe_open(shard, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  # not a mapping
                if name.startswith(_TEXT):
                    tensors[f"model.{name.removeprefix(_TEXT)}"] = file.get_tensor(name)
                elif name == _HEAD:
                    tensors[name] = file.get_tensor(name)
        if tensors:
            save_file(tensors, target / shard.name, metadata={"format": "pt"})
            places.update(dict.fromkeys(tensors, shard.name))
            size += sum(tensor.nbytes for tensor in tensors.values())
    if len(set(places.values())) > 1:
        index = {"metadata": {"total_size": size}, "weight_map": places}
        (target / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    elif places:
        (target / next(iter(places.values()))).rename(target / "model.safetensors")


def main(words: Sequence[str] | None = None) -> None:
    """Convert a checkpoint, from the command line."""
    convert.run(words, make, module="benchmarks.peers.text_twin", description="A Qwen3 of a Qwen3-VL.")


if __name__ == "__main__":
    main()
