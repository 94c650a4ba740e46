"""Checkpoints of the published shapes with random weights: `python -m benchmarks.checkpoint SHAPE DIR`.

They have a real model's dimensions and random weights, so they serve for speed and memory, never for quality. The
tokenizer has the control tokens and a token for every byte; the vocabulary has as many rows as the published one.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import (
    Phi4MultimodalConfig,
    Phi4MultimodalForCausalLM,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from benchmarks.errors import BenchError
from demo.tokenizer import CONTROL_TOKENS, build_tokenizer, save_tokenizer

SHARD_SIZE = "2GB"
"""Most bytes of a weight file, unless a tensor is larger: so much is in memory at a time."""


@dataclass(frozen=True)
class Family:
    """What the checkpoints of a family share.

    Attributes:
        config: transformers' class of their config.
        model: transformers' class of the model.
        rope: Parameters of the rotation.
        patch_size: Edge of the encoder's patches, in pixels; None: the model takes text only.
    """

    config: Any
    model: Any
    rope: dict[str, Any]
    patch_size: int | None


QWEN3_VL = Family(
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    {"rope_theta": 5e6, "mrope_section": [24, 20, 20], "mrope_interleaved": True},
    patch_size=16,
)
QWEN2_5_VL = Family(
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    {"rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    patch_size=14,
)
QWEN3 = Family(Qwen3Config, Qwen3ForCausalLM, {"rope_theta": 1e6}, patch_size=None)
PHI4_MULTIMODAL = Family(
    Phi4MultimodalConfig,
    Phi4MultimodalForCausalLM,
    {"rope_type": "longrope", "rope_theta": 1e4, "partial_rotary_factor": 0.75},
    patch_size=14,
)


@dataclass(frozen=True)
class Shape:
    """Dimensions of a model.

    Attributes:
        text: Dimensions of the language model.
        vision: Dimensions of the encoder; empty where there is none.
        vocab_size: Rows of the embedding.
        context: Most tokens of a prompt and its answer.
        tied: Whether the output head is the embedding.
        family: Its family.
        rank: Rank of the adapter for images; 0: there is none.
    """

    text: dict[str, int]
    vision: dict[str, Any]
    vocab_size: int = 151936
    context: int = 262144
    tied: bool = True
    family: Family = QWEN3_VL
    rank: int = 0


VISION: dict[str, Any] = {
    "depth": 24,
    "hidden_size": 1024,
    "num_heads": 16,
    "intermediate_size": 4096,
    "deepstack_visual_indexes": [5, 11, 17],
    "num_position_embeddings": 2304,
}
"""The encoder of the published 2B and 4B, except `out_hidden_size`."""


def _text(hidden: int, layers: int, heads: int, intermediate: int) -> dict[str, int]:
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": intermediate,
    }


WINDOWS: dict[str, Any] = {
    "depth": 32,
    "hidden_size": 1280,
    "num_heads": 16,
    "intermediate_size": 3420,
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
    "tokens_per_second": 2,
}
"""The encoder of the published Qwen2.5-VL 3B and 7B, except `out_hidden_size`."""


def _narrow(hidden: int, layers: int, heads: int, intermediate: int) -> dict[str, int]:
    """As `_text`, where the width of a head follows from their number."""
    text = _text(hidden, layers, heads, intermediate)
    del text["head_dim"]
    return text


SHAPES = {
    "2b": Shape(_text(2048, 28, 16, 6144), VISION),
    "4b": Shape(_text(2560, 36, 32, 9728), VISION),
    "8b": Shape(
        _text(4096, 36, 32, 12288),
        {
            "depth": 27,
            "hidden_size": 1152,
            "num_heads": 16,
            "intermediate_size": 4304,
            "deepstack_visual_indexes": [8, 16, 24],
            "num_position_embeddings": 2304,
        },
        tied=False,
    ),
    "qwen2.5-3b": Shape(
        {**_narrow(2048, 36, 16, 11008), "num_key_value_heads": 2}, WINDOWS, context=128_000, family=QWEN2_5_VL
    ),
    "qwen2.5-7b": Shape(
        {**_narrow(3584, 28, 28, 18944), "num_key_value_heads": 4},
        WINDOWS,
        vocab_size=152064,
        context=128_000,
        tied=False,
        family=QWEN2_5_VL,
    ),
    "qwen3-0.6b": Shape(_text(1024, 28, 16, 3072), {}, context=40960, family=QWEN3),
    "qwen3-1.7b": Shape(_text(2048, 28, 16, 6144), {}, context=40960, family=QWEN3),
    "qwen3-4b": Shape(_text(2560, 36, 32, 9728), {}, context=40960, family=QWEN3),
    "qwen3-8b": Shape(_text(4096, 36, 32, 12288), {}, context=40960, tied=False, family=QWEN3),
    "phi4-mm": Shape(
        _narrow(3072, 32, 24, 8192),
        {
            "num_hidden_layers": 27,
            "hidden_size": 1152,
            "num_attention_heads": 16,
            "intermediate_size": 4304,
            "image_size": 448,
            "crop_size": 448,
        },
        vocab_size=200064,
        context=131072,
        family=PHI4_MULTIMODAL,
        rank=256,
    ),
    # To try a benchmark in seconds: its figures mean nothing.
    "tiny": Shape(
        {**_text(64, 4, 2, 128), "num_key_value_heads": 1},
        {
            "depth": 4,
            "hidden_size": 64,
            "num_heads": 2,
            "intermediate_size": 128,
            "deepstack_visual_indexes": [1, 2, 3],
            "num_position_embeddings": 256,
        },
        vocab_size=512,
        context=4096,
    ),
}


def make(shape: Shape, directory: Path, *, tokenizer: Path | None = None, seed: int = 0) -> Path:
    """Write a checkpoint in the layout of published ones, completely or not at all.

    Args:
        shape: Its dimensions.
        directory: Target directory; it must not exist.
        tokenizer: tokenizer.json of a model of this family, for programs that support no other.
        seed: Seed of the weights.

    Returns:
        The directory.

    Raises:
        BenchError: The directory exists, or the tokenizer is not of this family.
    """
    if directory.exists():
        raise BenchError(f"{directory} exists: name another directory")
    words = build_tokenizer([]) if tokenizer is None else Tokenizer.from_file(str(tokenizer))
    vocab = words.get_vocab()
    ids = {token: vocab[token] for token in CONTROL_TOKENS if token in vocab}
    if len(ids) < len(CONTROL_TOKENS) or len(vocab) > shape.vocab_size:
        raise BenchError(f"{tokenizer} is not a tokenizer of this family, or too large for {shape.vocab_size} rows")
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}-") as scratch:
        fresh = Path(scratch) / "checkpoint"
        _save_weights(shape, ids, fresh, seed)
        if shape.rank:
            _save_adapter(shape, fresh / "vision-lora", seed)
        save_tokenizer(words, fresh, shape.context)
        for name, settings in _processors(shape).items():
            _write(fresh / name, settings)
        end, padding = ids["<|im_end|>"], ids["<|endoftext|>"]
        _write(fresh / "generation_config.json", {"eos_token_id": [end, padding], "pad_token_id": padding})
        for path in fresh.rglob("*"):
            if path.is_file():
                path.chmod(0o644)
        fresh.rename(directory)
    return directory


def _config(shape: Shape, ids: dict[str, int]) -> Any:
    """The config of a shape, by transformers' class."""
    family = shape.family
    if family is PHI4_MULTIMODAL:
        return _phi4_config(shape, ids)
    text = {
        **shape.text,
        "vocab_size": shape.vocab_size,
        "max_position_embeddings": shape.context,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": shape.tied,
        "rope_parameters": {"rope_type": "default", **family.rope},
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
    }
    if family.patch_size is None:
        return family.config(**text)
    return family.config(
        text_config=text,
        vision_config={
            **shape.vision,
            "patch_size": family.patch_size,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "out_hidden_size": shape.text["hidden_size"],
        },
        tie_word_embeddings=shape.tied,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )


def _phi4_config(shape: Shape, ids: dict[str, int]) -> Any:
    """The config of Phi-4-multimodal; the factors of LongRoPE are all one."""
    factors = [1.0] * int(0.75 * shape.text["hidden_size"] / shape.text["num_attention_heads"] / 2)
    return shape.family.config(
        **shape.text,
        vocab_size=shape.vocab_size,
        max_position_embeddings=shape.context,
        original_max_position_embeddings=4096,
        tie_word_embeddings=shape.tied,
        rope_parameters={**shape.family.rope, "short_factor": factors, "long_factor": factors},
        vision_config={
            **shape.vision,
            "patch_size": shape.family.patch_size,
            "image_token_id": ids["<|image_pad|>"],
        },
        audio_config={"audio_token_id": ids["<|video_pad|>"]},
        bos_token_id=ids["<|endoftext|>"],
        eos_token_id=[ids["<|endoftext|>"], ids["<|im_end|>"]],
        pad_token_id=ids["<|endoftext|>"],
    )


def _save_weights(shape: Shape, ids: dict[str, int], directory: Path, seed: int) -> None:
    """Write the config and random weights; those of audio, which is not served, are left out."""
    config, kind = _config(shape, ids), shape.family.model
    config.architectures, config.dtype = [kind.__name__], torch.bfloat16
    directory.mkdir()
    config.save_pretrained(directory)
    with torch.device("meta"):
        model = kind(config).to(torch.bfloat16)
    left_out = ("lm_head.weight",) if config.tie_word_embeddings else ()
    blank = {
        name: one for name, one in model.state_dict().items() if name not in left_out and "audio_embed" not in name
    }
    # Generated and written file by file: memory holds one of them.
    files = split_torch_state_dict_into_shards(blank, max_shard_size=SHARD_SIZE)
    draw = torch.Generator().manual_seed(seed)
    for file, names in files.filename_to_tensors.items():
        weights = {name: _draw(name, blank[name].shape, draw) for name in names}
        save_file(weights, directory / file, metadata={"format": "pt"})
    if files.is_sharded:
        index = {"metadata": files.metadata, "weight_map": files.tensor_to_filename}
        _write(directory / "model.safetensors.index.json", index)


def _save_adapter(shape: Shape, directory: Path, seed: int) -> None:
    """Write a random adapter of all matrices of the layers, in PEFT's format."""
    text = shape.text
    width, inner = text["hidden_size"], text["intermediate_size"]
    keys = 2 * text["num_key_value_heads"] * width // text["num_attention_heads"]
    sizes = {
        "self_attn.qkv_proj": (width + keys, width),
        "self_attn.o_proj": (width, width),
        "mlp.gate_up_proj": (2 * inner, width),
        "mlp.down_proj": (width, inner),
    }
    draw = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(text["num_hidden_layers"]):
        for matrix, (outputs, inputs) in sizes.items():
            stem = f"base_model.model.model.layers.{layer}.{matrix}"
            for half, size in (("A", (shape.rank, inputs)), ("B", (outputs, shape.rank))):
                tensors[f"{stem}.lora_{half}.weight"] = _draw(stem, torch.Size(size), draw)
    directory.mkdir()
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    described = {"peft_type": "LORA", "r": shape.rank, "lora_alpha": 2 * shape.rank, "target_modules": sorted(sizes)}
    _write(directory / "adapter_config.json", described)


def _draw(name: str, shape: torch.Size, draw: torch.Generator) -> torch.Tensor:
    """A tensor as at initialization: norms are one, biases zero, others normally distributed."""
    values = torch.empty(shape, dtype=torch.bfloat16)
    if name.endswith(".bias"):
        return values.zero_()
    return values.fill_(1) if len(shape) == 1 else values.normal_(0, 0.02, generator=draw)


def _processors(shape: Shape) -> dict[str, dict[str, Any]]:
    """The settings files of the published models.

    Qwen2.5-VL's have none for videos, which Phi-4-multimodal lacks, and Qwen3's none at all.
    """
    if shape.family is QWEN3:
        return {}
    image, video = "preprocessor_config.json", "video_preprocessor_config.json"
    if shape.family is PHI4_MULTIMODAL:
        return {image: {"image_processor_type": "Phi4MultimodalImageProcessorFast", "dynamic_hd": 36}}
    common: dict[str, Any] = {"temporal_patch_size": 2, "merge_size": 2}
    if shape.family is QWEN2_5_VL:
        means = {name: getattr(Qwen2VLImageProcessorPil, name) for name in ("image_mean", "image_std")}
        bounds = {"min_pixels": 56 * 56, "max_pixels": 16_384 * 28 * 28, "patch_size": 14}
        names = {"image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor"}
        return {image: {**names, **bounds, **common, **means}}
    means = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    common |= {"processor_class": "Qwen3VLProcessor", "patch_size": 16, **means}
    sizes = ((256 * 256, 4096 * 4096), (4096, 24 * 1024 * 1024))
    of_image, of_video = ({"shortest_edge": least, "longest_edge": greatest} for least, greatest in sizes)
    return {
        image: {"image_processor_type": "Qwen2VLImageProcessorFast", "size": of_image, **common},
        video: {"video_processor_type": "Qwen3VLVideoProcessor", "size": of_video, **common},
    }


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def main(words: Sequence[str] | None = None) -> None:
    """Write a checkpoint, from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checkpoint", description="A random-weight checkpoint.")
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--tokenizer", type=Path, metavar="FILE", help="tokenizer.json of a real model of the family")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(words)
    try:
        make(SHAPES[options.shape], options.directory, tokenizer=options.tokenizer, seed=options.seed)
    except BenchError as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
