"""The packages of an image: the closure of its extra's requirements over an environment."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

_EXTRA = re.compile(r"pip install '\.\[([a-z,]+)\]'")


class InventoryError(Exception):
    """The packages cannot be listed. The message is one sentence with cause and remedy."""


@dataclass(frozen=True)
class Package:
    """An installed package.

    Attributes:
        name: Its normalized name.
        version: Its version.
        licence: What its metadata says: an SPDX expression, the names of its classifiers, or the first line of a text.
        requires: Normalized names of the packages that it requires here.
    """

    name: str
    version: str
    licence: str
    requires: tuple[str, ...]


def images(folder: Path) -> dict[str, str]:
    """The extra that each image installs, by the image's name.

    Args:
        folder: The folder of its Dockerfiles.
    """
    found = {}
    for file in sorted(folder.glob("*.Dockerfile")):
        extras = _EXTRA.findall(file.read_text(encoding="utf-8"))
        if len(extras) != 1:
            raise InventoryError(f"{file} installs {len(extras)} extras, and one is expected: pip install '.[NAME]'")
        found[file.stem] = extras[0]
    return found


def requirements(pyproject: Path, extra: str) -> list[Requirement]:
    """What the project requires with one of its extras."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    return [Requirement(line) for line in (*project["dependencies"], *project["optional-dependencies"][extra])]


def installed(paths: Iterable[Path]) -> dict[str, Distribution]:
    """The packages in folders of packages, by normalized name."""
    return {canonicalize_name(found.name): found for found in distributions(path=[str(path) for path in paths])}


def closure(roots: Iterable[Requirement], environment: Mapping[str, Distribution]) -> list[Package]:
    """The packages that some requirements install, with all that those require, by name.

    Args:
        roots: The requirements.
        environment: The installed packages.

    Raises:
        InventoryError: One of them is not installed, or in a version that is not required.
    """
    extras: dict[str, set[str]] = {}
    edges: dict[str, set[str]] = {}
    waiting = [("", requirement) for requirement in roots if _applies(requirement, ())]
    while waiting:
        parent, requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        edges.setdefault(parent, set()).add(name)
        found = environment.get(name)
        if found is None:
            raise InventoryError(f"{name} is required and not installed: run make setup")
        if not requirement.specifier.contains(found.version, prereleases=True):
            raise InventoryError(f"{requirement} is required and {found.version} is installed: run make setup")
        if name in extras and requirement.extras <= extras[name]:
            continue
        extras.setdefault(name, set()).update(requirement.extras)
        further = [Requirement(line) for line in found.requires or ()]
        waiting += [(name, one) for one in further if _applies(one, extras[name])]
    return [
        Package(name, environment[name].version, licence_of(environment[name]), tuple(sorted(edges.get(name, ()))))
        for name in sorted(extras)
    ]


def _applies(requirement: Requirement, extras: Iterable[str]) -> bool:
    return requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in ("", *extras))


def licence_of(distribution: Distribution) -> str:
    """The licence that a package's metadata states; `unknown` if it states none."""
    metadata = distribution.metadata.json
    if expression := metadata.get("license_expression"):
        return str(expression)
    prefix = "License :: "
    lines = [line.removeprefix(prefix) for line in metadata.get("classifier", ()) if line.startswith(prefix)]
    names = [line.rpartition(" :: ")[2] for line in lines if line != "OSI Approved"]
    if names:
        return " AND ".join(sorted(names))
    text = str(metadata.get("license", "")).strip()
    return text.splitlines()[0] if text else "unknown"
