"""Docker and compose as the checks see them: thin, and without opinions."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


class EngineError(Exception):
    """A command of the engine failed, or something did not happen in time."""


def docker(*words: str, seconds: float = 120, check: bool = True) -> str:
    """Run `docker` and return what it printed, both streams together."""
    return run(["docker", *words], seconds=seconds, check=check)


def run(
    command: Sequence[str], *, seconds: float, check: bool = True, environment: dict[str, str] | None = None
) -> str:
    """Run a command and return what it printed, both streams together.

    Raises:
        EngineError: It failed, and `check` is set, or it took too long.
    """
    # In a session of its own: Ctrl-C reaches the checks alone, and what compose has started ends with it.
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        env=environment,
        cwd=ROOT,
        start_new_session=True,
    ) as process:
        try:
            printed, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired as error:
            _end(process)
            raise EngineError(f"`{' '.join(command)}` took longer than {seconds:g} s") from error
        except BaseException:
            _end(process)
            raise
    if check and process.returncode != 0:
        tail = "\n".join(printed.splitlines()[-30:])
        raise EngineError(f"`{' '.join(command)}` ended with {process.returncode}:\n{tail}")
    return printed


def _end(process: subprocess.Popen[str]) -> None:
    """End a command and all that it has started; the engine gives up a build whose client is gone."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)


def works(*command: str) -> bool:
    """Whether a command ends well."""
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def inspect(name: str) -> dict[str, Any]:
    """What the engine knows of a container or an image."""
    found: dict[str, Any] = json.loads(docker("inspect", name))[0]
    return found


def compose_command() -> list[str]:
    """`docker compose` where there is one, else docker-compose.

    Raises:
        EngineError: There is neither.
    """
    if shutil.which("docker") is None:
        raise EngineError("there is no `docker` here")
    if works("docker", "compose", "version"):
        return ["docker", "compose"]
    if shutil.which("docker-compose"):
        return ["docker-compose"]
    raise EngineError("there is neither `docker compose` nor docker-compose here")


def settings() -> list[str]:
    """Every variable that docker-compose.yml reads."""
    files = [path.read_text() for path in ROOT.glob("docker-compose*.yml")]
    return sorted({name for text in files for name in re.findall(r"\$\{(\w+)", text)})


@dataclass
class Project:
    """The project of docker-compose.yml under a name, with settings and ports of its own.

    Attributes:
        command: How compose is called.
        name: Name of the compose project.
        env_file: Its settings; a .env of the user's has no say.
        override: A compose file that is read after docker-compose.yml.
    """

    command: list[str]
    name: str
    env_file: Path
    override: Path
    _environment: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self._environment = {key: value for key, value in os.environ.items() if key not in settings()}
        # The classic builder, where the newer one is not installed.
        if not works("docker", "buildx", "version"):
            self._environment["DOCKER_BUILDKIT"] = "0"

    def compose(self, *words: str, seconds: float = 120, check: bool = True) -> str:
        """Run compose."""
        files = ["-f", str(ROOT / "docker-compose.yml"), "-f", str(self.override)]
        command = [*self.command, "--env-file", str(self.env_file), "-p", self.name, *files, *words]
        return run(command, seconds=seconds, check=check, environment=self._environment)

    def ids(self, service: str) -> list[str]:
        """The containers of a service, the oldest first."""
        found = docker(
            "ps", "--all", "--quiet", "--no-trunc",
            "--filter", f"label=com.docker.compose.project={self.name}",
            "--filter", f"label=com.docker.compose.service={service}",
        ).split()  # fmt: skip
        return sorted(found, key=lambda container: str(inspect(container)["Created"]))

    def address(self, port: int) -> str:
        """`host:port` where a port of the gateway is open on this machine."""
        bindings = inspect(self.ids("gateway")[0])["NetworkSettings"]["Ports"][f"{port}/tcp"]
        return f"{bindings[0]['HostIp']}:{bindings[0]['HostPort']}"

    def wait_healthy(self, counts: dict[str, int], *, seconds: float) -> None:
        """Wait until each service has that many containers and all are healthy.

        Raises:
            EngineError: They are not, in time.
        """
        end = time.monotonic() + seconds
        while True:
            health = {
                service: [inspect(c)["State"].get("Health", {}).get("Status", "none") for c in self.ids(service)]
                for service in counts
            }
            if all(states == ["healthy"] * counts[service] for service, states in health.items()):
                return
            if time.monotonic() > end:
                raise EngineError(f"not healthy after {seconds:g} s: {health}")
            time.sleep(1)


def calls(container: str, method: str) -> int:
    """How many calls of a method a service has answered well, by its log."""
    count = 0
    for line in docker("logs", container).splitlines():
        if not line.startswith("{"):
            continue
        entry = json.loads(line)
        count += entry["event"] == "call" and entry["method"].endswith(f"/{method}") and entry["code"] == "OK"
    return count
