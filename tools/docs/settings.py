"""The settings of the three services as tables: flags, variables, defaults, ranges and meanings, from pydantic."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic.fields import FieldInfo

from decoder_service.settings import DecoderSettings
from gateway.settings import GatewaySettings
from serving.settings import MIB, ServerSettings
from tools.docs.tables import table
from vision_service.settings import VisionSettings

SERVICES: tuple[tuple[str, type[ServerSettings]], ...] = (
    ("vision_service", VisionSettings),
    ("decoder_service", DecoderSettings),
    ("gateway", GatewaySettings),
)
"""Modules of the services, and their settings."""

_HEAD = ("Flag", "Variable", "Default", "Allowed", "Meaning")


def markdown() -> str:
    """A table of the common settings, and one for each service."""
    prefixes = " ".join(f"`{settings.model_config.get('env_prefix')}`" for _, settings in SERVICES)
    shared = [name for name in ServerSettings.model_fields if name != "port"]
    blocks = [
        "### All three",
        f"The variables start with the prefix of the service: {prefixes}.",
        table(_HEAD, [_row(name, ServerSettings.model_fields[name], "…") for name in shared]),
    ]
    for module, settings in SERVICES:
        prefix = str(settings.model_config.get("env_prefix"))
        own = [(name, field) for name, field in settings.model_fields.items() if name not in shared]
        blocks += [f"### {module}", table(_HEAD, [_row(name, field, prefix) for name, field in own])]
    return "\n\n".join(blocks)


def _row(name: str, field: FieldInfo, prefix: str) -> Sequence[str]:
    flag = name.replace("_", "-")
    flags = f"`--{flag}`, `--no-{flag}`" if field.annotation is bool else f"`--{flag}`"
    return flags, f"`{prefix}{name.upper()}`", _default(name, field), _allowed(field), field.description or ""


def _default(name: str, field: FieldInfo) -> str:
    if field.is_required():
        return "must be set"
    value = field.default
    if isinstance(value, bool):
        return "on" if value else "off"
    if value is None:
        return "not set"
    if name.endswith("_bytes") and value % MIB == 0:
        return f"{value} ({value // MIB} MiB)"
    return f"`{value}`" if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else str(value)


def _allowed(field: FieldInfo) -> str:
    kind: Any = field.annotation
    if isinstance(kind, UnionType) or get_origin(kind) is Union:
        of_choices = (_allowed_type(choice) for choice in get_args(kind))
        return ", ".join(filter(None, (*_bounds(field.metadata), *of_choices)))
    if get_origin(kind) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(kind))
    if kind is bool:
        return ""
    return ", ".join(_bounds(field.metadata))


def _allowed_type(kind: Any) -> str:
    """The allowed values of one member of a union; empty for a member without bounds."""
    if get_origin(kind) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(kind))
    if get_origin(kind) is Annotated:
        return ", ".join(_bounds(bound for info in get_args(kind)[1:] for bound in getattr(info, "metadata", [info])))
    return ""


def _bounds(metadata: Iterable[Any]) -> Iterator[str]:
    for bound in metadata:
        match bound:
            case annotated_types.Ge():
                yield f"at least {bound.ge}"
            case annotated_types.Gt():
                yield f"over {bound.gt}"
            case annotated_types.Le():
                yield f"at most {bound.le}"
