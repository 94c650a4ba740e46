"""What the container files promise each other; no engine needed. `tests/containers/run` runs them for real."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest
import yaml
from PIL import Image

from decoder_service.settings import DecoderSettings
from gateway.settings import GatewaySettings
from tests.containers.engine import ROOT, settings
from tests.containers.load import with_comment
from tests.pictures import noise, png
from vision_service.settings import VisionSettings

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
        if name not in ("TRIPTYCH_BUNDLE", "TRIPTYCH_KEYS"):  # where it is not set a volume stands for it
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


BASE_PACKAGE_ALONE = textwrap.dedent(
    """
    import importlib.abc, importlib.metadata, re, sys, tomllib

    def name_of(requirement):
        return re.sub("[-_.]+", "-", re.match("[A-Za-z0-9._-]+", requirement)[0]).lower()

    with open("pyproject.toml", "rb") as file:
        project = tomllib.load(file)["project"]
    allowed, more = set(), {name_of(requirement) for requirement in project["dependencies"]}
    while more:
        allowed |= more
        needed = (r for name in more for r in importlib.metadata.requires(name) or () if "extra ==" not in r)
        present = {name_of(d.name) for d in importlib.metadata.distributions()}
        more = {name_of(r) for r in needed} & present - allowed

    class OnlyAllowed(importlib.abc.MetaPathFinder):
        owners = importlib.metadata.packages_distributions()

        def find_spec(self, fullname, path=None, target=None):
            owners = {name_of(owner) for owner in self.owners.get(fullname.partition(".")[0], ())}
            if path is None and owners and not owners & (allowed | {project["name"]}):
                raise ModuleNotFoundError(f"{fullname} is of {owners}, which tests/containers/run does not install")

    sys.meta_path.insert(0, OnlyAllowed())
    import tests.containers.checks
    import triptych_cli.main
    """
)


def test_the_checks_need_the_dependencies_of_the_base_package_alone() -> None:
    """What `tests/containers/run` imports on the host is what it installs there."""
    assert '["project"]["dependencies"]' in (ROOT / "tests" / "containers" / "run").read_text()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "protos")])}
    command = [sys.executable, "-c", BASE_PACKAGE_ALONE]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_a_comment_makes_another_file_of_the_same_picture() -> None:
    """The files that the load asks about are PNG files that differ in their comment and show the same."""
    picture = noise(16, 8)
    with Image.open(io.BytesIO(with_comment(png(picture), "turn 2"))) as other:
        assert other.convert("RGB").tobytes() == picture.tobytes()
        assert other.info["Comment"] == "turn 2"


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
def test_every_stage_says_whose_it_is(path: Path) -> None:
    """Each stage has a title that begins alike, by which `tests/containers/run` knows what it may remove."""
    stages = re.split(r"^FROM ", path.read_text(), flags=re.MULTILINE)[1:]
    assert len(stages) == 2
    assert all('LABEL org.opencontainers.image.title="Triptych ' in stage for stage in stages)


def test_compose_of_a_text_model_starts_no_vision_service() -> None:
    """docker-compose.text.yml leaves the tier out, and tells the gateway so by a setting that it has."""
    services = yaml.safe_load((ROOT / "docker-compose.text.yml").read_text())["services"]
    assert services["vision"] == {"scale": 0}
    (value,) = services["gateway"]["environment"].values()
    assert list(services["gateway"]["environment"]) == ["GATEWAY_VISION"]
    assert GatewaySettings(vision=value).vision is None


def test_the_tls_settings_of_compose_are_settings() -> None:
    """Each variable of docker-compose.tls.yml is a setting of its service, and each file lies in a mounted folder."""
    services = yaml.safe_load((ROOT / "docker-compose.tls.yml").read_text())["services"]
    types = {"vision": VisionSettings, "decoder": DecoderSettings, "gateway": GatewaySettings}
    assert services.keys() == types.keys()
    for name, service in services.items():
        mounted = [volume.split(":")[-2] for volume in service["volumes"]]
        for variable, value in service["environment"].items():
            assert variable.removeprefix(f"{name.upper()}_").lower() in types[name].model_fields
            assert value == "gateway" or any(value.startswith(f"{folder}/") for folder in mounted)
