"""Qwen3-VL checkpoints of the published shapes with random weights: `python -m benchmarks.checkpoint SHAPE DIR`.

They have a real model's dimensions and mean nothing, so they serve for speed and memory, never for quality. The
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
from tokenizers import Tokenizer
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from benchmarks.errors import BenchError
from demo.tokenizer import CONTROL_TOKENS, build_tokenizer, save_tokenizer


@dataclass(frozen=True)
class Shape:
    """Dimensions of a model.

    Attributes:
        text: Of the language model.
        vision: Of the encoder.
        vocab_size: Rows of the embedding.
        context: Most tokens of a prompt and its answer.
    """

    text: dict[str, int]
    vision: dict[str, Any]
    vocab_size: int = 151936
    context: int = 262144


VISION: dict[str, Any] = {
    "depth": 24,
    "hidden_size": 1024,
    "num_heads": 16,
    "intermediate_size": 4096,
    "deepstack_visual_indexes": [5, 11, 17],
    "num_position_embeddings": 2304,
}
"""The encoder of the published models, but for `out_hidden_size`."""


def _text(hidden: int, layers: int, heads: int, intermediate: int) -> dict[str, int]:
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": intermediate,
    }


SHAPES = {
    "2b": Shape(_text(2048, 28, 16, 6144), VISION),
    "4b": Shape(_text(2560, 36, 32, 9728), VISION),
    # To try a benchmark in seconds: its figures say nothing of any model.
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
    """Write a checkpoint as published ones are laid out; there is all of it or nothing.

    Args:
        shape: Its dimensions.
        directory: Where; it must not exist.
        tokenizer: tokenizer.json of a model of this family, for programs that know no other tokenizer.
        seed: Of the weights.

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
        save_tokenizer(words, fresh, shape.context)
        _write(fresh / "preprocessor_config.json", _processor("image", 256 * 256, 4096 * 4096))
        _write(fresh / "video_preprocessor_config.json", _processor("video", 4096, 24 * 1024 * 1024))
        end, padding = ids["<|im_end|>"], ids["<|endoftext|>"]
        _write(fresh / "generation_config.json", {"eos_token_id": [end, padding], "pad_token_id": padding})
        for path in fresh.iterdir():
            path.chmod(0o644)
        fresh.rename(directory)
    return directory


def _save_weights(shape: Shape, ids: dict[str, int], directory: Path, seed: int) -> None:
    config = Qwen3VLConfig(
        text_config={
            **shape.text,
            "vocab_size": shape.vocab_size,
            "max_position_embeddings": shape.context,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5e6,
                "mrope_section": [24, 20, 20],
                "mrope_interleaved": True,
            },
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
        },
        vision_config={
            **shape.vision,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "out_hidden_size": shape.text["hidden_size"],
        },
        tie_word_embeddings=True,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)  # or the 4B would take 18 GB on its way
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model: Any = Qwen3VLForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(before)
    model.save_pretrained(directory, max_shard_size="4GB")


def _processor(medium: str, shortest: int, longest: int) -> dict[str, Any]:
    image = medium == "image"
    return {
        f"{medium}_processor_type": "Qwen2VLImageProcessorFast" if image else "Qwen3VLVideoProcessor",
        "processor_class": "Qwen3VLProcessor",
        "size": {"shortest_edge": shortest, "longest_edge": longest},
        "patch_size": 16,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def main(words: Sequence[str] | None = None) -> None:
    """Write one, from the command line."""
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
