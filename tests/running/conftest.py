"""Runs of pytest on files of a test's own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
Run = Callable[..., subprocess.CompletedProcess[str]]

CONFTEST = 'pytest_plugins = ["tests.running.coroutines", "tests.running.remains", "tests.running.watchdog"]\n'
SETTINGS = """\
[pytest]
asyncio_mode = auto
asyncio_default_fixture_loop_scope = function
timeout = 60
filterwarnings = error::pytest.PytestUnraisableExceptionWarning
"""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs a file of tests in a process of its own, with the plugins of this folder, to its end."""

    def run_file(text: str, **settings: float) -> subprocess.CompletedProcess[str]:
        (tmp_path / "conftest.py").write_text(CONFTEST)
        (tmp_path / "pytest.ini").write_text(SETTINGS)
        (tmp_path / "test_it.py").write_text(textwrap.dedent(text))
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "protos")])
        options = [word for name, value in settings.items() for word in ("-o", f"{name}={value:g}")]
        return subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, "test_it.py"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
        )

    return run_file
