"""The vision adapter of a checkpoint: inside the published files, or a PEFT folder beside transformers' own."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.errors import ExportError, ExportProblem
from exporter.json_files import read_json
from exporter.weights import TensorRef, Tensors

from .targets import matrices, of_folder, of_published, regular, unsupported

FOLDER = "vision-lora"
"""The folder of the vision adapter in a checkpoint; that of the speech adapter is ignored."""

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_INSIDE = re.compile(r"(.+)\.lora_([AB])\.(\w+)\.weight")
_PEFT = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])\.weight")
_UNSUPPORTED = (
    "use_dora",
    "fan_in_fan_out",
    "bias",
    "lora_bias",
    "modules_to_save",
    "layer_replication",
    "alora_invocation_tokens",
    "target_parameters",
    "trainable_token_indices",
    "use_qalora",
)
"""Fields of PEFT that change what is computed."""
_UNSET: tuple[Any, ...] = (None, False, "none", "", [], {})

Halves = Mapping[str, Mapping[str, TensorRef]]


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


@dataclass(frozen=True)
class _Files:
    """Where an adapter is, for messages: what names its matrices in the config, and what the weights call their halves.

    `stored` takes the name of a matrix, and "A" or "B".
    """

    config: Path
    field: str
    weights: Path
    stored: Callable[[str, str], str]


@dataclass(frozen=True)
class _Size:
    """The rank that the config gives a matrix, and what the product of its halves is multiplied by."""

    rank: int
    scale: float


def divide(tensors: Tensors) -> tuple[Tensors, Halves]:
    """Divide the published tensors into those of the model, and the vision adapter's A and B by matrix."""
    halves: dict[str, dict[str, TensorRef]] = {}
    rest = {}
    for name, ref in tensors.items():
        found = _INSIDE.fullmatch(name)
        if found is None:
            rest[name] = ref
        elif found[3] == "vision":
            halves.setdefault(found[1], {})[found[2]] = ref
    return Tensors(rest), halves


def read_inside(halves: Halves, config: Mapping[str, Any], path: Path, layers: int) -> dict[str, Adapted]:
    """Read the vision adapter that was among the published tensors; nothing if there is none.

    Args:
        halves: A and B by matrix.
        config: as `config.json` has it.
        path: of that file.
        layers: of the language model.

    Raises:
        ExportError: the config does not say what scales the adapter, or the adapter is not as it says.
    """
    described = config.get("vision_lora")
    if described is None and not halves:
        return {}
    if not isinstance(described, dict):
        raise unsupported(path, "vision_lora has no lora_alpha and r")
    size = _size(path, described)
    files = _Files(path, "vision_lora.layer", path.parent, "{}.lora_{}.vision.weight".format)
    named = of_published(path, described, layers, halves)
    return _whole(files, halves, named, layers, lambda name: size)


def read_folder(root: Path, layers: int) -> dict[str, Adapted]:
    """Read the vision adapter in PEFT's format of checkpoint directory `root`; nothing if there is no folder.

    Args:
        root: the directory.
        layers: of the language model.

    Raises:
        ExportError: it is not a LoRA of a supported kind, or not complete.
    """
    folder = root / FOLDER
    if not folder.is_dir():
        return {}
    for name in (_CONFIG, _WEIGHTS):
        if not (folder / name).is_file():
            raise ExportError(ExportProblem.ADAPTER_FILE_MISSING, folder=folder, name=name)
    path = folder / _CONFIG
    config = read_json(path)
    if config.get("peft_type") != "LORA":
        raise unsupported(path, f"peft_type is {config.get('peft_type')}")
    for name in _UNSUPPORTED:
        if config.get(name) not in _UNSET:
            raise unsupported(path, f"{name} is {config[name]}")
    halves: dict[str, dict[str, TensorRef]] = {}
    for name, ref in Tensors.file(folder / _WEIGHTS).items():
        found = _PEFT.fullmatch(name)
        if found is None:
            raise unsupported(folder / _WEIGHTS, f"it has the tensor {name}")
        halves.setdefault(found[1], {})[found[2]] = ref
    ranks, alphas = (_patterns(path, config, field) for field in ("rank_pattern", "alpha_pattern"))

    def size(name: str) -> _Size:
        own = {"r": _by_pattern(ranks, name), "lora_alpha": _by_pattern(alphas, name)}
        return _size(path, {**config, **{field: value for field, value in own.items() if value is not None}})

    files = _Files(path, "target_modules", folder / _WEIGHTS, "base_model.model.{}.lora_{}.weight".format)
    return _whole(files, halves, of_folder(path, config, layers, halves), layers, size)


def _size(path: Path, config: Mapping[str, Any]) -> _Size:
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if rank is None or alpha is None:
        raise unsupported(path, "it has no lora_alpha and r")
    if type(rank) is not int or rank < 1:
        raise unsupported(path, f"the rank r is {rank!r}, not a positive whole number")
    if type(alpha) not in (int, float) or not math.isfinite(alpha):
        raise unsupported(path, f"lora_alpha is {alpha!r}, not a finite number")
    return _Size(rank, float(alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)))


def _patterns(path: Path, config: Mapping[str, Any], field: str) -> list[tuple[re.Pattern[str], Any]]:
    """The values that PEFT gives the modules whose names end with a pattern."""
    patterns = config.get(field) or {}
    if not isinstance(patterns, dict):
        raise unsupported(path, f"{field} is {patterns!r}, not an object of patterns and values")
    for pattern in patterns:
        regular(path, field, pattern)  # as it stands in the file
    return [(regular(path, field, rf"(.*\.)?({pattern})$"), value) for pattern, value in patterns.items()]


def _by_pattern(patterns: Iterable[tuple[re.Pattern[str], Any]], name: str) -> Any:
    return next((value for pattern, value in patterns if pattern.match(name)), None)


def _whole(
    files: _Files, halves: Halves, named: Iterable[str], layers: int, size: Callable[[str], _Size]
) -> dict[str, Adapted]:
    """Check that the weights have what the config names, and nothing else.

    Args:
        files: where both are.
        halves: A and B by matrix.
        named: the matrices that the config names.
        layers: of the language model.
        size: what the config says about a matrix.
    """
    known, named = set(matrices(layers)), list(named)
    for name, half in halves.items():
        ref = next(iter(half.values()))
        if name not in known:
            raise unsupported(ref.file, f"{ref.name} changes no matrix of the language model's {layers} layers")
        if name not in named:
            raise unsupported(
                files.config, f"{files.field} does not name {name}, for which {ref.file.name} has tensors"
            )
    for name in named:
        for letter in "AB":
            if letter not in halves.get(name, {}):
                raise ExportError(
                    ExportProblem.ADAPTER_INCOMPLETE,
                    weights=files.weights,
                    tensor=files.stored(name, letter),
                    config=files.config,
                )
    return {name: _checked(files, name, halves[name]["A"], halves[name]["B"], size(name)) for name in named}


def _checked(files: _Files, name: str, down: TensorRef, up: TensorRef, size: _Size) -> Adapted:
    if (len(down.shape), len(up.shape)) != (2, 2):
        raise unsupported(down.file, f"A and B of {name} have shapes {list(down.shape)} and {list(up.shape)}")
    for ref, rank in ((down, down.shape[0]), (up, up.shape[1])):
        if rank != size.rank:
            raise ExportError(
                ExportProblem.ADAPTER_RANK,
                config=files.config,
                matrix=name,
                said=size.rank,
                tensor=ref.name,
                file=ref.file,
                rank=rank,
            )
        ref.check_dtype()
    return Adapted(down, up, size.scale)
