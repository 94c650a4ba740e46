"""A Qwen3-VL checkpoint with the config of transformers 4.57: `python -m benchmarks.peers.dialect FROM TO`.

transformers 5 renamed the fields of the rotary embedding. It reads both forms; optimum-intel reads only the older one,
which the published checkpoints have.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.errors import BenchError
from benchmarks.peers import convert


def make(source: Path, target: Path) -> Path:
    """Write a directory with that config and with links to all other files, completely or not at all.

    Args:
        source: A Qwen3-VL checkpoint in either form.
        target: Target directory; it must not exist.

    Returns:
        `target`.

    Raises:
        BenchError: `source` is not such a checkpoint, or `target` exists.
    """
    if target.exists():
        raise BenchError(f"{target} exists: name another directory")
    try:
        config = older(json.loads((source / "config.json").read_text(encoding="utf-8")))
    except (OSError, KeyError, ValueError) as error:
        raise BenchError(f"{source} is not a Qwen3-VL checkpoint") from error
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
        fresh = Path(scratch) / "checkpoint"
        fresh.mkdir(mode=0o755)
        for path in source.iterdir():
            if path.name != "config.json":
                (fresh / path.name).symlink_to(path.resolve())
        (fresh / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        fresh.rename(target)
    return target


def older(config: dict[str, Any]) -> dict[str, Any]:
    """Convert a config to the older form.

    Raises:
        KeyError: It is not the config of a Qwen3-VL.
    """
    text, vision = dict(config["text_config"]), dict(config["vision_config"])
    if rope := text.pop("rope_parameters", None):
        text["rope_theta"] = rope["rope_theta"]
        text["rope_scaling"] = {name: rope[name] for name in ("rope_type", "mrope_section", "mrope_interleaved")}
    vision.pop("rope_parameters", None)
    vision["model_type"] = "qwen3_vl"
    return {**config, "text_config": text, "vision_config": vision}


def main(words: Sequence[str] | None = None) -> None:
    """Convert a checkpoint, from the command line."""
    convert.run(
        words, make, module="benchmarks.peers.dialect", description="Converts a config to that of transformers 4.57."
    )


if __name__ == "__main__":
    main()
