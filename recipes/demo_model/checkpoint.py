"""Write a checkpoint as a published Qwen3-VL repository lays it out."""

from __future__ import annotations

import copy
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import Qwen3VLForConditionalGeneration

from demo.config import CONTEXT_LENGTH
from demo.tokenizer import save_tokenizer
from recipes.demo_model.config import IMAGE_PREPROCESSOR, VIDEO_PREPROCESSOR


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
