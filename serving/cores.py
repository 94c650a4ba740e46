"""The processors: how many this process may use, by taskset and its container, and what they are called."""

from __future__ import annotations

import os
import platform
from pathlib import Path

_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
_CPU_INFO = Path("/proc/cpuinfo")


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


def cpu_name(cpu_info: Path = _CPU_INFO) -> str:
    """What the processor calls itself.

    Args:
        cpu_info: Where Linux tells its model.
    """
    try:
        for line in cpu_info.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    except OSError:  # not Linux
        pass
    return platform.processor() or platform.machine()
