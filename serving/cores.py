"""How many processors this process may use: what taskset and a container leave it, not what the machine has."""

from __future__ import annotations

import os
from pathlib import Path

_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")


def usable_cores(cpu_max: Path = _CPU_MAX) -> int:
    """The processors of this process: its affinity, and no more than its control group's quota, rounded up.

    Args:
        cpu_max: Where Linux tells the quota: `QUOTA PERIOD` in microseconds, or `max PERIOD`.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = cpu_max.read_text().split()
        return max(1, min(cores, -(-int(quota) // int(period))))
    except (OSError, ValueError):  # no control groups, or no quota
        return cores
