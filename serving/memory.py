"""The memory of this process: how much it may use, and the return of what it has freed."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_MEMORY_MAX = Path("/sys/fs/cgroup/memory.max")


def release_freed_memory() -> bool:
    """Return freed memory to the operating system.

    glibc keeps freed blocks for later allocations. Loading a model frees as much memory as it keeps, and later
    allocations do not need it.

    Returns:
        Whether the C library supports it (glibc); otherwise nothing happens.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is None:
        return False
    trim(ctypes.c_size_t(0))
    return True


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
