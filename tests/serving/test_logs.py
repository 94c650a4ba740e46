"""Logs never fail what they tell of."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import structlog
from serving import logs
from serving.settings import ServerSettings
logs.configure(ServerSettings(log_format={form!r}), "test")
for _ in range(3):
    structlog.get_logger().info("called", padding="x" * 10_000)
try:
    raise ValueError("of a request")
except ValueError:
    structlog.get_logger().exception("failed")
print("went on")
"""


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_log_that_cannot_be_written_fails_nothing(form: str) -> None:
    """On a full disk lines are dropped, and the caller goes on."""
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM.format(form=form)],
            stdout=subprocess.PIPE, stderr=full, text=True, timeout=120, check=False,
        )  # fmt: skip
    assert done.stdout == "went on\n"
