"""Checkpoints that are not what an export reads: which format they are in, and what to do."""

import fnmatch
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .errors import ExportError, ExportProblem

_TITLES = {
    "awq": "AWQ",
    "gptq": "GPTQ",
    "auto-round": "AutoRound",
    "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed-tensors",
    "mlx": "MLX",
}
_BLOCK = (128, 128)  # of FP8 where the config names none, as transformers has it


def refuse_other_formats(root: Path | str, names: Iterable[str]) -> None:
    """Name the format of a directory or repository that has not the files of a checkpoint, where it can be told.

    Args:
        root: where the files are, as the message names it; an adapter's config is read if it is a directory.
        names: of its files.

    Raises:
        ExportError: it holds GGUF files, or an adapter.
    """
    found = sorted(names)
    if any(name.lower().endswith(".gguf") for name in found):
        raise ExportError(ExportProblem.GGUF, root=root)
    if "adapter_config.json" in found or fnmatch.filter(found, "adapter_model.*"):
        base = _base_model(Path(root))
        raise ExportError(ExportProblem.ADAPTER, root=root, of_model=f" of {base}" if base else "")


def take_quantization(root: Path, config: dict[str, Any]) -> tuple[int, int]:
    """Take what a config says of its quantization out of it.

    Args:
        root: the checkpoint's directory, for the message.
        config: as `config.json` has it; changed in place.

    Returns:
        Rows and columns of a block of FP8 weights that share one scale.

    Raises:
        ExportError: the checkpoint is quantized, in another way than FP8.
    """
    found: list[Mapping[str, Any]] = []
    for part in (config, config.get("text_config") or {}):
        found += [part[key] for key in ("quantization_config", "compression_config") if part.get(key)]
        for key in ("quantization_config", "compression_config"):
            part.pop(key, None)
    of_mlx = config.pop("quantization", None)  # where newer versions of MLX have the other key, too, it has no method
    if not found and not of_mlx:
        return _BLOCK
    method = next((str(entry["quant_method"]) for entry in found if entry.get("quant_method")), None)
    if method is None:
        method = "mlx" if of_mlx else "bitsandbytes"  # which did not name itself at first
    if method != "fp8":
        raise ExportError(ExportProblem.QUANTIZED, root=root, method=_TITLES.get(method, method))
    match found[0].get("weight_block_size"):
        case [int(rows), int(columns)] if rows > 0 and columns > 0:
            return rows, columns
    return _BLOCK


def _base_model(root: Path) -> str:
    """The model that an adapter belongs to; nothing where that is not said."""
    try:
        name = json.loads((root / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, LookupError, TypeError):
        return ""
    return str(name or "")
