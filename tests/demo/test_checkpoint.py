"""The committed checkpoint: it is a true Qwen3-VL, small, and stops where Qwen does."""

import json
import math
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoConfig

from demo.checkpoint import CHECKPOINT, silence_deepstack


def test_it_is_laid_out_like_a_published_repository() -> None:
    """The files of a Qwen3-VL repository are there, and at most 20 MB in all."""
    names = {path.name for path in CHECKPOINT.iterdir()}
    assert names >= {
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "video_preprocessor_config.json",
    }
    assert sum(path.stat().st_size for path in CHECKPOINT.iterdir()) <= 20e6


def test_it_is_a_true_qwen3_vl() -> None:
    """DeepStack with three levels, interleaved M-RoPE, grouped-query attention and tied embeddings."""
    config = AutoConfig.from_pretrained(CHECKPOINT)
    text, vision = config.text_config, config.vision_config
    assert config.model_type == "qwen3_vl"
    assert len(vision.deepstack_visual_indexes) == 3
    assert text.rope_parameters["mrope_interleaved"]
    assert sum(text.rope_parameters["mrope_section"]) == text.head_dim // 2
    assert text.num_key_value_heads < text.num_attention_heads
    assert config.tie_word_embeddings
    assert (vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size) == (16, 2, 2)
    assert text.hidden_size % 32 == text.intermediate_size % 32 == 0


def test_its_size_is_three_to_eight_million_parameters() -> None:
    """The count of stored numbers, each in two bytes."""
    with safe_open(CHECKPOINT / "model.safetensors", "np") as weights:
        assert 3e6 <= sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys()) <= 8e6  # noqa: SIM118  # it is no dictionary


def test_silencing_deepstack_zeroes_its_levels_alone(tmp_path: Path) -> None:
    """Three levels' weights and biases are zero, and every other tensor is as it was."""
    before = load_file(CHECKPOINT / "model.safetensors")
    after = load_file(silence_deepstack(CHECKPOINT, tmp_path / "silent") / "model.safetensors")
    changed = [name for name, tensor in before.items() if not tensor.equal(after[name])]
    assert len(changed) == 6
    assert all(".deepstack_merger_list." in name and not after[name].any() for name in changed)


def test_generation_stops_at_the_end_of_turn() -> None:
    """Both end tokens are named, as in Qwen's own generation settings."""
    settings = json.loads((CHECKPOINT / "generation_config.json").read_text(encoding="utf-8"))
    vocabulary = json.loads((CHECKPOINT / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    ids = {token["content"]: token["id"] for token in vocabulary}
    assert settings["eos_token_id"] == [ids["<|im_end|>"], ids["<|endoftext|>"]]
