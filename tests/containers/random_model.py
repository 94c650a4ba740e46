"""Writes a bundle of a small random model and prints how transformers answers: runs in the exporter's image.

python -m tests.containers.random_model qwen2_5_vl|qwen3 OUT PICTURE
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import exporter
from tests.checkpoints import make_qwen2_5_vl, make_qwen3
from tests.containers.families import QUESTION, TOKENS
from tests.reference import Reference


def main(family: str, out: Path, picture: Path) -> None:
    """Write OUT/bundle in fp32, and print the tokens of the greedy answer."""
    if family == "qwen3":
        checkpoint = make_qwen3(out / "checkpoint")
        tokens = _of_text(checkpoint)
    else:
        checkpoint = make_qwen2_5_vl(out / "checkpoint")
        reference = Reference(checkpoint)
        tokens = reference.generate(reference.inputs([("user", [QUESTION, picture.read_bytes()])]), TOKENS)
    exporter.export(checkpoint, out / "bundle", precision="fp32", model_id=family, progress=False)
    print(json.dumps(tokens))  # noqa: T201  # for tests/containers/families.py


def _of_text(checkpoint: Path) -> list[int]:
    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    turns = [{"role": "user", "content": QUESTION}]
    given = AutoTokenizer.from_pretrained(checkpoint).apply_chat_template(
        turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    greedy = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    with torch.inference_mode():
        written = model.generate(**given, max_new_tokens=TOKENS, **greedy)
    return [int(token) for token in written[0, given["input_ids"].shape[1] :]]


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
