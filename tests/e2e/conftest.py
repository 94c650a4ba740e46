"""The whole system as a person starts it: `triptych up` in a process of its own."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.processes import line, started
from triptych.bundles import demo_bundle, demo_checkpoint

TRIPTYCH = str(Path(sys.executable).with_name("triptych"))
READY = re.compile(r"ready grpc=(\S+) http=(\S+) model=(\S+)\n")


@dataclass(frozen=True)
class Up:
    """A running system."""

    process: subprocess.Popen[bytes]
    grpc: str
    http: str
    model: str

    def ask(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run `triptych ask` against it."""
        return run("ask", *words, "--address", self.grpc)


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end."""
    return subprocess.run([TRIPTYCH, *words], capture_output=True, text=True, timeout=120, check=False)


@contextlib.contextmanager
def up(*flags: str, encoder: str = "float32", **environment: str) -> Iterator[Up]:
    """Start the system on free ports and stop it as a supervisor would.

    Args:
        flags: Of the command.
        encoder: Type that the encoder computes in: the same on every processor, unless it is `auto`.
        environment: More variables for the services.
    """
    command = [TRIPTYCH, "up", "--grpc-port", "0", "--http-port", "0", *flags]
    with started(command, env={**os.environ, "VISION_DTYPE": encoder, **environment}) as process:
        try:
            said = line(process.stdout, "the line that says that it is ready")
            found = READY.fullmatch(said)
            assert found is not None, f"no ready line but {said!r}"
            yield Up(process, *found.groups())
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


@pytest.fixture(scope="session")
def checkpoint() -> Path:
    """The demo checkpoint."""
    return demo_checkpoint()


@pytest.fixture(scope="session")
def int4_system() -> Iterator[Up]:
    """The demo model at INT4, as `triptych up` starts it, with the encoder in float32."""
    with up() as running:
        yield running


@pytest.fixture(scope="session")
def auto_system() -> Iterator[Up]:
    """The demo model at INT4, as `triptych up` starts it when told nothing."""
    with up(encoder="auto") as running:
        yield running


@pytest.fixture(scope="session")
def fp32_system() -> Iterator[Up]:
    """The demo model at full precision."""
    with up("--bundle", str(demo_bundle("fp32"))) as running:
        yield running
