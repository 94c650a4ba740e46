"""The processors: the number that this process may use, their model and instruction sets."""

from __future__ import annotations

import os
import platform
from collections.abc import Collection
from pathlib import Path

_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
_CPU_INFO = Path("/proc/cpuinfo")
_STAT = Path("/proc/stat")


def usable_cores(cpu_max: Path = _CPU_MAX) -> int:
    """Number of processors of this process: its affinity, at most its control group's quota, rounded up.

    Args:
        cpu_max: Linux's file of the quota: `QUOTA PERIOD` in microseconds, or `max PERIOD`.
    """
    cores = len(affinity())
    try:
        quota, period = cpu_max.read_text().split()
        return max(1, min(cores, -(-int(quota) // int(period))))
    except (OSError, ValueError):  # no control groups, or no quota
        return cores


def affinity() -> frozenset[int]:
    """Numbers of the processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def busy_seconds(cores: Collection[int], stat: Path = _STAT) -> float | None:
    """Busy time of these processors since the system's start, of all processes, added up.

    Processes of lower priority are not counted, since they yield.

    Args:
        cores: Their numbers.
        stat: Linux's file of CPU times.

    Returns:
        Seconds, accurate to some hundredths; None if it is not known.
    """
    ticks = 0
    try:
        lines = [line.split() for line in stat.read_text(encoding="ascii").splitlines()]
        told = {name: times for name, *times in filter(None, lines)}
        for core in cores:
            user, _, system, _, _, interrupts, softirq, steal = map(int, told[f"cpu{core}"][:8])
            ticks += user + system + interrupts + softirq + steal
    except (OSError, KeyError, ValueError):  # not Linux, or a sandbox
        return None
    return ticks / os.sysconf("SC_CLK_TCK") if ticks else None


def cpu_name(cpu_info: Path = _CPU_INFO) -> str:
    """The name of the processor's model.

    Args:
        cpu_info: Linux's description of the processors.
    """
    return _field("model name", cpu_info) or platform.processor() or platform.machine()


def lacks_vnni(cpu_info: Path = _CPU_INFO) -> bool:
    """Whether this is an x86 processor that adds products of bytes in 16 bits, which can saturate.

    Args:
        cpu_info: Linux's description of the processors. Without flags in it the result is False.
    """
    flags = cpu_flags(cpu_info)
    return "sse2" in flags and not {"avx512_vnni", "avx_vnni"} & flags


def cpu_flags(cpu_info: Path = _CPU_INFO) -> set[str]:
    """The instruction sets of an x86 processor by Linux's names; empty if they are not known.

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
