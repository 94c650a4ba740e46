"""Signals end a command in one line and leave nothing behind, whenever they come."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

INTERRUPTED = "triptych: interrupted\n"
# Stands in for a module that takes long to import: it says that it began, and waits to be ended.
SLOW = "import os, sys\nos.write(1, b'importing\\n')\nsys.stdin.read()\n"


# Stands in for the exporter: what it has to clean up is said.
EXPORTER = """
import os, sys

class ExportError(Exception): ...

def export(*_, **__):
    try:
        os.write(1, b"exporting\\n")
        sys.stdin.read()
    finally:
        os.write(1, b"cleaned up\\n")
"""


def _started(shadow: Path, *words: str) -> subprocess.Popen[str]:
    """The command line in a process that finds modules in `shadow` first."""
    command, pipe = [sys.executable, "-P", "-m", "triptych_cli", *words], subprocess.PIPE
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(shadow), *filter(None, sys.path)])}
    return subprocess.Popen(command, env=env, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


@pytest.mark.parametrize("module", ["grpc", "exporter"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_while_modules_are_imported(tmp_path: Path, module: str, number: signal.Signals) -> None:
    """One line and exit code 1, or 130 for Ctrl-C, in the command line's own imports and in the exporter's."""
    (tmp_path / f"{module}.py").write_text(SLOW)
    with _started(tmp_path, "export", "checkpoint", "bundle") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "importing\n"
        process.send_signal(number)
        _, said = process.communicate()
    assert (process.returncode, said) == (130 if number == signal.SIGINT else 1, INTERRUPTED)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 1), (signal.SIGHUP, 1)])
def test_an_export_cleans_up(tmp_path: Path, number: signal.Signals, code: int) -> None:
    """A supervisor's signal and that of a terminal which is closed unwind a running export, as Ctrl-C does."""
    (tmp_path / "exporter.py").write_text(EXPORTER)
    with _started(tmp_path, "export", "checkpoint", "bundle") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "exporting\n"
        process.send_signal(number)
        rest, said = process.communicate()
    assert (process.returncode, rest, said) == (code, "cleaned up\n", INTERRUPTED)


def test_hanging_up_is_ignored_under_nohup() -> None:
    """SIGHUP that is ignored at the start stays ignored; Ctrl-C still ends."""
    code = (
        "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "from serving.signals import interrupt_on_signals\n"
        "interrupt_on_signals()\n"
        "signal.raise_signal(signal.SIGHUP)\n"
        "try: signal.raise_signal(signal.SIGINT)\n"
        "except KeyboardInterrupt: print('ended')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "ended\n"
