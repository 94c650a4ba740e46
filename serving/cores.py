"""The processors: how many this process may use, by affinity and container, their name and instruction sets."""

from __future__ import annotations

import os
import platform
from pathlib import Path

_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
_CPU_INFO = Path("/proc/cpuinfo")


def usable_cores(cpu_max: Path = _CPU_MAX) -> int:
    """The processors of this process: its affinity, and no more than its control group's quota, rounded up.

    Args:
        cpu_max: Linux's file of the quota: `QUOTA PERIOD` in microseconds, or `max PERIOD`.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = cpu_max.read_text().split()
        return max(1, min(cores, -(-int(quota) // int(period))))
    except (OSError, ValueError):  # no control groups, or no quota
        return cores


def cpu_name(cpu_info: Path = _CPU_INFO) -> str:
    """The name of the processor's model.

    Args:
        cpu_info: Linux's description of the processors.
    """
    return _field("model name", cpu_info) or platform.processor() or platform.machine()


def lacks_vnni(cpu_info: Path = _CPU_INFO) -> bool:
    """Whether this is an x86 processor that adds up products of bytes in 16 bits, where they can saturate.

    Args:
        cpu_info: Linux's description of the processors. Without flags in it the answer is False.
    """
    flags = cpu_flags(cpu_info)
    return "sse2" in flags and not {"avx512_vnni", "avx_vnni"} & flags


def cpu_flags(cpu_info: Path = _CPU_INFO) -> set[str]:
    """The instruction sets of an x86 processor by Linux's names; empty where they are not known.

    Args:
        cpu_info: Linux's description of the processors.
    """
    return set((_field("flags", cpu_info) or "").split())


def _field(what: str, cpu_info: Path) -> str | None:
    """A field of the first processor."""
    try:
        for line in cpu_info.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == what:
                return value.strip()
    except OSError:  # not Linux
        pass
    return None
