"""The audit of packages: which ones an image has, and which licences are refused."""

from __future__ import annotations

from importlib.metadata import Distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tools.audit.inventory import InventoryError, Package, closure, images, installed, licence_of, requirements
from tools.audit.licences import Accepted, refused

ROOT = Path(__file__).parents[2]
SITE = Path(pytest.__file__).parents[1]


def _install(folder: Path, name: str, version: str, *lines: str) -> None:
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    head = ["Metadata-Version: 2.4", f"Name: {name}", f"Version: {version}"]
    (info / "METADATA").write_text("\n".join([*head, *lines, ""]), encoding="utf-8")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, Distribution]:
    """Five packages."""
    _install(tmp_path, "Root_Package", "2.0", "Requires-Dist: leaf>=1", 'Requires-Dist: more; extra == "all"')
    _install(tmp_path, "leaf", "1.5", "License-Expression: MIT", 'Requires-Dist: absent; sys_platform == "none"')
    _install(tmp_path, "more", "0.1", "Requires-Dist: root-package[all]", "License: Own terms")
    _install(tmp_path, "old", "1.0", "Classifier: License :: OSI Approved :: MIT License")
    _install(tmp_path, "lost", "1.0", "Requires-Dist: absent")
    return installed([tmp_path])


def _names(environment: dict[str, Distribution], *roots: str) -> list[str]:
    return [package.name for package in closure([Requirement(root) for root in roots], environment)]


def test_the_packages_of_an_image(environment: dict[str, Distribution]) -> None:
    """What is required, with what that requires: extras where they are asked for, also in a circle."""
    assert _names(environment, "root-package") == ["leaf", "root-package"]
    assert _names(environment, "Root.Package[all]") == ["leaf", "more", "root-package"]
    [_, _, root] = closure([Requirement("root-package[all]")], environment)
    assert root.requires == ("leaf", "more")


@pytest.mark.parametrize(
    ("root", "problem"),
    [
        ("lost", "absent is required and not installed: run make setup"),
        ("leaf>=2", "leaf>=2 is required and 1.5 is installed: run make setup"),
    ],
)
def test_an_environment_that_is_out_of_date(environment: dict[str, Distribution], root: str, problem: str) -> None:
    """A package that is missing or old is an error, not a gap in the list."""
    with pytest.raises(InventoryError) as caught:
        _names(environment, root)
    assert str(caught.value) == problem


def test_licences_are_read_from_metadata(environment: dict[str, Distribution]) -> None:
    """From the SPDX expression, else from classifiers, else from the text."""
    found = {name: licence_of(distribution) for name, distribution in environment.items()}
    assert found == {
        "leaf": "MIT",
        "lost": "unknown",
        "more": "Own terms",
        "old": "MIT License",
        "root-package": "unknown",
    }


def test_a_licence_that_is_not_accepted_is_refused() -> None:
    """Each such package is named, unless it is accepted by its name."""
    packages = [Package("good", "1", "MIT", ()), Package("bad", "2", "GPL-3.0", ()), Package("x-y", "3", "unknown", ())]
    accepted = Accepted(frozenset({"MIT"}), {"x-*": "read"})
    [sentence] = refused(packages, accepted)
    assert sentence.startswith("bad 2: the licence 'GPL-3.0' is not in ")


def test_the_images_of_this_project_have_only_accepted_licences() -> None:
    """As `make audit` checks it, for every Dockerfile."""
    found = images(ROOT / "deploy" / "docker")
    assert found == {"decoder": "decoder", "export": "export", "gateway": "gateway", "vision": "vision"}
    environment, accepted = installed([SITE]), Accepted.read(ROOT / "pyproject.toml")
    for extra in found.values():
        packages = closure(requirements(ROOT / "pyproject.toml", extra), environment)
        assert {"grpcio", "pydantic"} < {package.name for package in packages}
        assert refused(packages, accepted) == []
