"""Write a checkpoint as a published Qwen3-VL repository lays it out, and read it back."""

from __future__ import annotations

import copy
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import Qwen3VLForConditionalGeneration

from demo.config import CONTEXT_LENGTH, IMAGE_PREPROCESSOR, VIDEO_PREPROCESSOR
from demo.tokenizer import save_tokenizer

CHECKPOINT = Path(__file__).with_name("checkpoint")


def save_checkpoint(model: Qwen3VLForConditionalGeneration, tokenizer: Tokenizer, directory: Path) -> None:
    """Write weights (bfloat16), configuration, tokenizer and preprocessor settings; all of it or nothing."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}-") as scratch:
        fresh = Path(scratch) / "checkpoint"
        stock = copy.deepcopy(model)
        for module in stock.modules():
            module.__dict__.pop("forward", None)
        stock.bfloat16()
        stock.save_pretrained(fresh)
        save_tokenizer(tokenizer, fresh, CONTEXT_LENGTH)
        end, padding = tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")
        _write(fresh / "preprocessor_config.json", IMAGE_PREPROCESSOR)
        _write(fresh / "video_preprocessor_config.json", VIDEO_PREPROCESSOR)
        _write(
            fresh / "generation_config.json",
            {
                "bos_token_id": padding,
                "pad_token_id": padding,
                "do_sample": False,
                "eos_token_id": [end, padding],
                "max_new_tokens": 64,
            },
        )
        fresh.chmod(0o755)
        for path in fresh.iterdir():
            path.chmod(0o644)
        if directory.exists():
            shutil.rmtree(directory)
        fresh.replace(directory)


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def silence_deepstack(checkpoint: Path, out: Path) -> Path:
    """A copy of a checkpoint whose DeepStack levels give zeros: what it still sees, it sees by the main features."""
    shutil.copytree(checkpoint, out)
    weights = load_file(out / "model.safetensors")
    silenced = [name for name in weights if ".deepstack_merger_list." in name and ".linear_fc2." in name]
    for name in silenced:
        weights[name].zero_()
    save_file(weights, out / "model.safetensors", {"format": "pt"})
    return out
