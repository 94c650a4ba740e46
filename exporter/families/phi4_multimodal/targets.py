"""Which matrices of the language model an adapter's config names, as PEFT reads it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from exporter.errors import ExportError, ExportProblem

_MODEL = "model."
_MATRICES = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")


def matrices(layers: int) -> list[str]:
    """The matrices that may have an adapter, by their names in transformers' class."""
    return [f"{_MODEL}layers.{layer}.{matrix}" for layer in range(layers) for matrix in _MATRICES]


def of_folder(path: Path, config: Mapping[str, Any], layers: int, present: Iterable[str]) -> list[str]:
    """The matrices that `adapter_config.json` names.

    Args:
        path: of that file.
        config: its content.
        layers: of the language model.
        present: the matrices that the weights have an adapter for: they tell which ones where the config does not.

    Raises:
        ExportError: a field is damaged, or names a module that no layer has.
    """
    known, targets, excluded = matrices(layers), config.get("target_modules"), config.get("exclude_modules")
    if targets is None:
        named = _alike(known, present)
    else:
        fits = _matcher(path, "target_modules", targets)
        named = [name for name in known if fits(name)]
        for target in targets if isinstance(targets, list) else ():
            if not any(_ends(name, target) for name in known):
                raise unsupported(path, f"target_modules names {target}, which no layer of the language model has")
    if not isinstance(targets, str) and config.get("layers_to_transform") not in (None, []):
        chosen = config["layers_to_transform"]
        chosen = chosen if isinstance(chosen, list) else [chosen]
        named = [name for name in named if int(name.split(".")[2]) in chosen]
    if excluded:
        leaves_out = _matcher(path, "exclude_modules", excluded)
        named = [name for name in named if not leaves_out(name)]
    return named


def of_published(path: Path, config: Mapping[str, Any], layers: int, present: Iterable[str]) -> list[str]:
    """The matrices that `vision_lora` of the published config names, by its regular expression `layer`.

    Args:
        path: of `config.json`.
        config: `vision_lora` in it.
        layers: of the language model.
        present: the matrices that the weights have an adapter for: they tell which ones where the config does not.

    Raises:
        ExportError: the regular expression is invalid.
    """
    known, pattern = matrices(layers), config.get("layer")
    if pattern is None:
        return _alike(known, present)
    if not isinstance(pattern, str):
        raise unsupported(path, f"vision_lora.layer is {pattern!r}, no regular expression")
    fits = regular(path, "vision_lora.layer", pattern)
    return [name for name in known if fits.fullmatch(name.removeprefix(_MODEL))]


def regular(path: Path, field: str, pattern: str) -> re.Pattern[str]:
    """Compile a regular expression of a config.

    Raises:
        ExportError: it is invalid.
    """
    try:
        return re.compile(pattern)
    except re.error as error:
        raise unsupported(path, f"{field} has the invalid regular expression {pattern!r}, {error}") from error


def unsupported(path: Path, problem: str) -> ExportError:
    """The error about an adapter's file."""
    return ExportError(ExportProblem.ADAPTER_UNSUPPORTED, path=path, error=problem)


def _alike(known: list[str], present: Iterable[str]) -> list[str]:
    """In each layer the matrices that have an adapter in one of them; all of them where none has one."""
    endings = {name.split(".", 3)[3] for name in set(known) & set(present)} or set(_MATRICES)
    return [name for name in known if name.split(".", 3)[3] in endings]


def _matcher(path: Path, field: str, value: Any) -> Callable[[str], bool]:
    if value == "all-linear":
        return lambda name: True
    if isinstance(value, str):
        pattern = regular(path, field, value)
        return lambda name: pattern.fullmatch(name) is not None
    if isinstance(value, list) and all(isinstance(ending, str) for ending in value):
        return lambda name: any(_ends(name, ending) for ending in value)
    raise unsupported(path, f"{field} is {value!r}, neither a regular expression nor a list of names")


def _ends(name: str, ending: str) -> bool:
    return f".{name}".endswith(f".{ending}")
