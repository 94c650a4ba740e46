"""CPU time of a process and of its children, from Linux's /proc."""

from __future__ import annotations

import os
from pathlib import Path

_PROC = Path("/proc")


def cpu_seconds(pid: int) -> float:
    """CPU time that a process and its running descendants have used, in seconds, accurate to a hundredth.

    Args:
        pid: Process id.
    """
    # The name, in parentheses, may contain blanks. Behind it are the fields from the third on.
    fields = (_PROC / str(pid) / "stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    own = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return own + sum(map(cpu_seconds, _children(pid)))


def _children(pid: int) -> list[int]:
    threads = (_PROC / str(pid) / "task").iterdir()
    return [int(child) for thread in threads for child in (thread / "children").read_text(encoding="ascii").split()]
