"""The path of the demo checkpoint, and a copy of it without DeepStack."""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

CHECKPOINT = Path(__file__).with_name("checkpoint")


def silence_deepstack(checkpoint: Path, out: Path) -> Path:
    """Make a copy of a checkpoint whose DeepStack features are zero, so that it has only the main features."""
    shutil.copytree(checkpoint, out)
    weights = load_file(out / "model.safetensors")
    silenced = [name for name in weights if ".deepstack_merger_list." in name and ".linear_fc2." in name]
    for name in silenced:
        weights[name].zero_()
    save_file(weights, out / "model.safetensors", {"format": "pt"})
    return out
