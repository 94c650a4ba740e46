"""Lowering the priority of a process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from serving.priority import lower_priority


@pytest.mark.parametrize("leads", [True, False])
def test_a_process_gets_its_niceness(leads: bool) -> None:
    """And so does its session, where it leads one: else the niceness of this test's own would change."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=leads)
    try:
        ours = _autogroup(os.getpid())
        wanted = os.getpriority(os.PRIO_PROCESS, 0) + 3
        lower_priority(process.pid, min(wanted, 19))
        assert os.getpriority(os.PRIO_PROCESS, process.pid) == min(wanted, 19)
        if leads and ours is not None:
            assert _autogroup(process.pid) == min(wanted, 19)
        assert _autogroup(os.getpid()) == ours
    finally:
        process.communicate(b"\n")


def test_a_process_that_has_ended_is_left_alone() -> None:
    """Nothing is raised."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    lower_priority(process.pid, 2)


def _autogroup(pid: int) -> int | None:
    """The niceness of a process's autogroup; None where there is none."""
    try:
        return int(Path(f"/proc/{pid}/autogroup").read_text().split("nice")[1])
    except (OSError, IndexError):
        return None
