"""Installs the clients of clients.toml, runs their scripts against `triptych up`, and prints a table."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gateway.keys.file import write_keys
from gateway.keys.key import Key, hash_of, new_secret
from serving.transport import ReservedPorts
from tests.processes import line, started

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CLIENTS = HERE / "clients.toml"
SCRIPTS = HERE / "scripts"
PICTURE = ROOT / "demo" / "examples" / "scene.png"

CHECKS = ("image", "schema", "tools", "cancel")
"""What every client is asked to do: the names that its script prints."""

_READY = re.compile(r"ready grpc=(\S+) http=(\S+) model=(\S+)\n")
_INSTALL_SECONDS = 900
_SCRIPT_SECONDS = 300


@dataclass(frozen=True)
class Client:
    """A client.

    Attributes:
        name: In the table.
        script: File of `scripts` that does the checks.
        pip: Packages from PyPI.
        npm: Packages from npm.
    """

    name: str
    script: str
    pip: Sequence[str] = ()
    npm: Sequence[str] = ()


@dataclass
class Outcome:
    """What came of one client.

    Attributes:
        client: Its name.
        version: Of the client, as its script prints it.
        results: Of each check: empty where it passed, or the reason.
    """

    client: str
    version: str = ""
    results: dict[str, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether all checks were made and passed."""
        return all(self.results.get(check) == "" for check in CHECKS)

    def missing(self, reason: str) -> Outcome:
        """The same, with a reason for the checks that were not made."""
        return dataclasses.replace(self, results={check: self.results.get(check, reason) for check in CHECKS})


@dataclass(frozen=True)
class System:
    """Where a running system answers.

    Attributes:
        grpc: Address of the gateway.
        http: Its URL.
        model: Name of the model.
        metrics: URL of the decoder's metrics.
        key: An API key of the gateway, which refuses calls without one.
    """

    grpc: str
    http: str
    model: str
    metrics: str
    key: str

    @property
    def variables(self) -> dict[str, str]:
        """What the scripts read."""
        return {
            "CLIENTS_BASE_URL": f"{self.http}/v1",
            "CLIENTS_MODEL": self.model,
            "CLIENTS_METRICS": self.metrics,
            "CLIENTS_PICTURE": str(PICTURE),
            "CLIENTS_KEY": self.key,
        }


def clients() -> list[Client]:
    """The clients of clients.toml."""
    return [Client(name, **entry) for name, entry in tomllib.loads(CLIENTS.read_text(encoding="utf-8")).items()]


class InstallError(Exception):
    """A client cannot be installed: the reason."""


def say(text: str) -> None:
    """Print a line now."""
    print(text, flush=True)  # noqa: T201  # what a person reads who started it


def environment(client: Client, cache: Path) -> Path:
    """The folder with a client's packages; one for each set of versions, made where it is missing.

    Raises:
        InstallError: It cannot be made.
    """
    wanted = json.dumps([client.pip, client.npm])
    folder = cache / f"{client.name}-{hashlib.sha256(wanted.encode()).hexdigest()[:8]}"
    finished = folder / "finished"
    if not finished.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        if client.npm:
            (folder / "package.json").write_text('{"private": true}\n', encoding="utf-8")
            _install(["npm", "install", "--no-audit", "--no-fund", *client.npm], folder)
        else:
            _install([sys.executable, "-m", "venv", "venv"], folder)
        if client.pip:
            _install(
                [str(folder / "venv" / "bin" / "pip"), "install", "--disable-pip-version-check", *client.pip], folder
            )
        finished.touch()
    return folder


def _install(command: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=_INSTALL_SECONDS, check=False
        )
    except FileNotFoundError as error:
        raise InstallError(f"{command[0]} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise InstallError(f"{command[0]} took more than {_INSTALL_SECONDS} s") from error
    if done.returncode:
        last = [text for text in done.stderr.splitlines() if text.strip()][-1:] or ["no message"]
        raise InstallError(f"{Path(command[0]).name}: {last[0]}")


def run(client: Client, folder: Path, served: System) -> Outcome:
    """Run a client's script.

    Args:
        client: The client.
        folder: Its environment.
        served: The system that it calls.
    """
    if client.npm:  # Node looks for packages where the script is
        for script in SCRIPTS.glob("*.mjs"):
            shutil.copy(script, folder)
        command = ["node", client.script]
    else:
        command = [str(folder / "venv" / "bin" / "python"), str(SCRIPTS / client.script)]
    # Nothing of this project's environment.
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env={**variables, **served.variables},
            stdout=subprocess.PIPE,
            text=True,
            timeout=_SCRIPT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        printed = error.stdout.decode() if isinstance(error.stdout, bytes) else error.stdout or ""
        return outcome(client.name, printed).missing(f"took more than {_SCRIPT_SECONDS} s")
    return outcome(client.name, done.stdout).missing(f"the script ended with {done.returncode} before it")


def outcome(name: str, printed: str) -> Outcome:
    """What a script printed: a line of JSON with its version, and one for each check."""
    found = Outcome(name)
    for text in printed.splitlines():
        if not text.startswith("{"):
            continue
        said = json.loads(text)
        if "version" in said:
            found.version = said["version"]
        elif said["check"] in CHECKS:
            found.results[said["check"]] = "" if said["ok"] else " ".join(said["detail"].split()) or "failed"
    return found


@contextlib.contextmanager
def system() -> Iterator[System]:
    """`triptych up` with the demo model on free ports, and an API key."""
    with tempfile.TemporaryDirectory() as folder:
        path, secret = Path(folder) / "keys.json", new_secret()
        write_keys(path, [Key(name="clients", sha256=hash_of(secret), tenant="clients")])
        with _up(path, secret) as served:
            yield served


@contextlib.contextmanager
def _up(keys: Path, secret: str) -> Iterator[System]:
    ports = ReservedPorts("127.0.0.1")
    metrics = ports.reserve()
    ports.release()
    command = [sys.executable, "-m", "triptych_cli", "up", "--grpc-port", "0", "--http-port", "0"]
    variables = {**os.environ, "DECODER_METRICS_PORT": str(metrics), "GATEWAY_KEYS_FILE": str(keys)}
    with started(command, cwd=ROOT, env=variables) as process:
        try:
            said = line(process.stdout, "the line that says that it is ready")
            if (ready := _READY.fullmatch(said)) is None:
                raise RuntimeError(f"triptych up said {said!r}")
            yield System(*ready.groups(), metrics=f"http://127.0.0.1:{metrics}/metrics", key=secret)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def table(outcomes: Sequence[Outcome]) -> str:
    """A row for each client and a column for each check, with the reasons of failures below."""
    rows = [["client", "version", *CHECKS]]
    rows += [
        [one.client, one.version, *("ok" if one.results.get(check) == "" else "FAILED" for check in CHECKS)]
        for one in outcomes
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    reasons = [f"{one.client}, {check}: {why}" for one in outcomes for check, why in one.results.items() if why]
    return "\n".join([*lines, *([""] if reasons else []), *reasons])


def main(words: Sequence[str] | None = None) -> int:
    """Run the checks. Returns the exit code."""
    known = {client.name: client for client in clients()}
    parser = argparse.ArgumentParser(prog="tests/clients/run", description=__doc__)
    parser.add_argument("--only", action="append", choices=[*known], help="this client; may be given several times")
    parser.add_argument("--cache", type=Path, help="folder for the environments, kept for the next time")
    options = parser.parse_args(words)
    outcomes = []
    with contextlib.ExitStack() as stack:
        cache = options.cache or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        served = stack.enter_context(system())
        for client in known.values():
            if options.only and client.name not in options.only:
                continue
            say(f"{client.name} …")
            try:
                outcomes.append(run(client, environment(client, cache.resolve()), served))
            except InstallError as error:
                outcomes.append(Outcome(client.name).missing(f"not installed: {error}"))
    say(table(outcomes))
    return 0 if all(one.passed for one in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
