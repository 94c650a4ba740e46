"""What the builder's names of nodes say of the matrices that they multiply by."""

from __future__ import annotations

import re
from typing import cast

from exporter.recipe import Kind

from .adapter import ADAPTER, GROUPS

PROJ, PROJ_UP = "_proj", "_proj/adapter"
"""The ends of the names of a matrix, and of its adapter's B."""

_PROJECTION = re.compile(rf"/model/layers\.(\d+)/(?:attn|mlp)/(\w+?)({PROJ_UP}|{PROJ}|{ADAPTER})/MatMul")
_HEAD = "/lm_head/MatMul"


def matrices(basename: str) -> tuple[tuple[Kind, ...], int, str]:
    """Which matrices the builder means by the name of a node, of which layer, and what of them.

    The last is `PROJ` for the matrix itself, and for its adapter `ADAPTER`, an A that several may share, or `PROJ_UP`.
    """
    if basename == _HEAD:
        return ("head",), 0, PROJ
    found = _PROJECTION.fullmatch(basename)
    if found is None:
        raise NotImplementedError(f"{basename} is a matmul that no recipe knows")
    layer, name, part = found.groups()
    return GROUPS[name][1] if part == ADAPTER else (cast("Kind", name),), int(layer), part
