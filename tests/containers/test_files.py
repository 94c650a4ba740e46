"""What the container files promise each other; no engine needed. `tests/containers/run` runs them for real."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from tests.containers.engine import ROOT, settings

DOCKERFILES = sorted((ROOT / "deploy" / "docker").glob("*.Dockerfile"))
SERVERS = [path for path in DOCKERFILES if path.name != "export.Dockerfile"]


def _example() -> dict[str, str]:
    """The variables of .env.example with the values that stand there."""
    return dict(re.findall(r"^#(\w+)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE))


def test_every_setting_of_compose_is_documented() -> None:
    """.env.example names just the variables that docker-compose.yml reads."""
    assert sorted(_example()) == settings()


def test_the_documented_defaults_are_the_defaults() -> None:
    """A value in .env.example is the one that docker-compose.yml takes by itself."""
    text = (ROOT / "docker-compose.yml").read_text()
    for name, default in re.findall(r"\$\{(\w+):-([^}]*)\}", text):
        if name != "TRIPTYCH_BUNDLE":  # where it is not set a volume stands for it
            assert _example()[name] == default, name


def test_there_is_a_dockerfile_for_each_service() -> None:
    """Three services and the exporter."""
    assert [path.stem for path in DOCKERFILES] == ["decoder", "export", "gateway", "vision"]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
def test_images_are_versioned_and_unprivileged(path: Path) -> None:
    """Each image carries the project's version, ends as the fixed user, and starts its program without a shell."""
    text = path.read_text()
    with (ROOT / "pyproject.toml").open("rb") as file:
        version = tomllib.load(file)["project"]["version"]
    assert f"ARG VERSION={version}\n" in text
    assert re.findall(r"^USER (.*)$", text, re.MULTILINE) == ["10001:10001"]
    assert re.search(r'^ENTRYPOINT \["python", "-m", "', text, re.MULTILINE)


@pytest.mark.parametrize("path", SERVERS, ids=lambda path: path.stem)
def test_the_health_check_asks_the_port_that_the_service_listens_on(path: Path) -> None:
    """The probe's port is the one in the environment and the one that is exposed."""
    text = path.read_text()
    (probed,) = re.findall(r'"serving\.probe", "127\.0\.0\.1:(\d+)"', text)
    assert f"{path.stem.upper()}_PORT={probed} " in text
    assert re.search(rf"^EXPOSE {probed}\b", text, re.MULTILINE)
