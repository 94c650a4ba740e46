"""The vision adapter of a checkpoint: inside the published files, or a PEFT folder beside transformers' own."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.errors import ExportError, ExportProblem
from exporter.json_files import read_json
from exporter.weights import TensorRef, Tensors

from . import published

FOLDER = "vision-lora"
"""The folder of the vision adapter in a checkpoint; that of the speech adapter is ignored."""

_INSIDE = re.compile(r"(.+)\.lora_([AB])\.(\w+)\.weight")
_PEFT = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])\.weight")
_UNSUPPORTED = {"use_dora": False, "fan_in_fan_out": False, "bias": "none", "modules_to_save": None}


@dataclass(frozen=True)
class Adapted:
    """The adapter of one matrix: B (A x) is multiplied by `scale`.

    Attributes:
        down: A [rank, inputs].
        up: B [outputs, rank].
        scale: what their product is multiplied by.
    """

    down: TensorRef
    up: TensorRef
    scale: float


def take_inside(tensors: Tensors, config: Mapping[str, Any], path: Path) -> tuple[Tensors, dict[str, Adapted]]:
    """Divide the published tensors into those of the model and the vision adapter's, by the matrices' names.

    Args:
        tensors: of the files.
        config: as `config.json` has it.
        path: of that file.

    Raises:
        ExportError: the config does not say what scales the adapter, or a half of it is missing.
    """
    halves: dict[str, dict[str, TensorRef]] = {}
    rest = {}
    for name, ref in tensors.items():
        found = _INSIDE.fullmatch(name)
        if found is None:
            rest[name] = ref
        elif found[3] == "vision":
            halves.setdefault(found[1], {})[found[2]] = ref
    if not halves:
        return Tensors(rest), {}
    try:
        scale = published.scale(config)
    except (LookupError, TypeError, ArithmeticError) as error:
        raise _unsupported(path, "vision_lora has no lora_alpha and r") from error
    return Tensors(rest), {name: _whole(path, name, half, scale) for name, half in halves.items()}


def read_folder(root: Path) -> dict[str, Adapted]:
    """Read the vision adapter in PEFT's format of checkpoint directory `root`; nothing if there is none.

    Raises:
        ExportError: it is not a LoRA of a supported kind.
    """
    folder = root / FOLDER
    path = folder / "adapter_config.json"
    if not path.is_file():
        return {}
    config = read_json(path)
    if config.get("peft_type") != "LORA":
        raise _unsupported(path, f"peft_type is {config.get('peft_type')}")
    for name, usual in _UNSUPPORTED.items():
        if config.get(name) not in (None, usual, []):
            raise _unsupported(path, f"{name} is {config[name]}")
    halves: dict[str, dict[str, TensorRef]] = {}
    for name, ref in Tensors.file(folder / "adapter_model.safetensors").items():
        found = _PEFT.fullmatch(name)
        if found is None:
            raise _unsupported(path, f"it has the tensor {name}")
        halves.setdefault(found[1], {})[found[2]] = ref
    return {name: _whole(path, name, half, _scale(path, config, name)) for name, half in halves.items()}


def _scale(path: Path, config: Mapping[str, Any], name: str) -> float:
    """What PEFT multiplies the product of a matrix's halves by: patterns go before the common values."""
    try:
        rank = _by_pattern(config.get("rank_pattern"), name, config["r"])
        alpha = _by_pattern(config.get("alpha_pattern"), name, config["lora_alpha"])
        return float(alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))
    except (LookupError, TypeError, ArithmeticError) as error:
        raise _unsupported(path, "it has no lora_alpha and r") from error


def _by_pattern(patterns: Mapping[str, Any] | None, name: str, otherwise: Any) -> Any:
    """The value of the first pattern that a module's name ends with."""
    fitting = (value for pattern, value in (patterns or {}).items() if re.match(rf"(.*\.)?({pattern})$", name))
    return next(fitting, otherwise)


def _whole(path: Path, name: str, half: Mapping[str, TensorRef], scale: float) -> Adapted:
    if half.keys() != {"A", "B"} or half["A"].shape[0] != half["B"].shape[1]:
        raise _unsupported(path, f"A and B of {name} do not fit each other")
    return Adapted(half["A"], half["B"], scale)


def _unsupported(path: Path, problem: str) -> ExportError:
    return ExportError(ExportProblem.ADAPTER_UNSUPPORTED, path=path, error=problem)
