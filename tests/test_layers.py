"""No package imports one above it: the layers in pyproject.toml, which `make lint` checks, too."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from importlinter.cli import EXIT_STATUS_ERROR, EXIT_STATUS_SUCCESS, lint_imports

ROOT = Path(__file__).parents[1]
PROJECT = ROOT / "pyproject.toml"


def check(config: Path) -> int:
    """The exit status of `lint-imports` on this configuration."""
    return lint_imports(str(config), no_cache=True)


def test_imports_point_down() -> None:
    """No import of the repository, deferred ones included, breaks the layers."""
    assert check(PROJECT) == EXIT_STATUS_SUCCESS


@pytest.mark.parametrize(("lower", "upper"), [("triptych", "demo"), ("triptych", "benchmarks"), ("serving", "gateway")])
def test_an_import_that_points_up_is_found(
    lower: str, upper: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Negative control: two layers in the wrong order are refused for what the upper one imports."""
    turned = tmp_path / "importlinter.toml"
    turned.write_text(
        f"""
        [tool.importlinter]
        root_packages = ["{lower}", "{upper}"]
        [[tool.importlinter.contracts]]
        name = "The wrong way round"
        type = "layers"
        layers = ["{lower}", "{upper}"]
        """,
        encoding="utf-8",
    )
    assert check(turned) == EXIT_STATUS_ERROR
    assert f"{upper} is not allowed to import {lower}" in capfd.readouterr().out


def test_every_installed_package_has_a_layer() -> None:
    """A new package cannot be left out."""
    tool = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["tool"]
    installed = {Path(name).name for name in tool["hatch"]["build"]["targets"]["wheel"]["packages"]}
    contract, *_ = tool["importlinter"]["contracts"]  # the others are of rooms inside a package
    layered = {name.strip() for layer in contract["layers"] for name in layer.split("|")}
    assert layered == set(tool["importlinter"]["root_packages"])
    assert layered - installed == {"recipes", "tools", "tests"}
