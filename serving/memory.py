"""The memory that this process may use."""

from __future__ import annotations

import os
from pathlib import Path

_MEMORY_MAX = Path("/sys/fs/cgroup/memory.max")


def usable_memory(memory_max: Path = _MEMORY_MAX) -> int:
    """Bytes of the machine's memory, at most its control group's limit.

    Args:
        memory_max: Linux's file of the limit: bytes, or `max`.
    """
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        return min(whole, int(memory_max.read_text()))
    except (OSError, ValueError):  # no control groups, or no limit
        return whole
