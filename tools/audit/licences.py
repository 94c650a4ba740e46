"""Checks licences against the list of those that are accepted, `[tool.triptych.audit]` in pyproject.toml."""

from __future__ import annotations

import fnmatch
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tools.audit.inventory import Package


@dataclass(frozen=True)
class Accepted:
    """The accepted licences.

    Attributes:
        licences: As packages state them, each exactly.
        packages: Patterns of packages that are accepted whatever their metadata states, and why.
    """

    licences: frozenset[str]
    packages: Mapping[str, str]

    @classmethod
    def read(cls, pyproject: Path) -> Accepted:
        """Read them from pyproject.toml."""
        table = tomllib.loads(pyproject.read_text(encoding="utf-8"))["tool"]["triptych"]["audit"]
        return cls(frozenset(table["licences"]), table["packages"])


def refused(packages: Iterable[Package], accepted: Accepted) -> list[str]:
    """One sentence for each package whose licence is not accepted."""
    return [
        f"{package.name} {package.version}: the licence {package.licence!r} is not in tool.triptych.audit.licences of "
        f"pyproject.toml; read it, then add it there, or the package to tool.triptych.audit.packages"
        for package in packages
        if package.licence not in accepted.licences
        and not any(fnmatch.fnmatchcase(package.name, pattern) for pattern in accepted.packages)
    ]
