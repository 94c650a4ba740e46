"""The memory of this process: how much it may use, and the return of what it has freed."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from pathlib import Path

GIB = 1 << 30

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


def require_address_space(name: str, needed: int) -> None:
    """Exit with 1 and one sentence if the limit of the address space (`ulimit -v`) is below what libraries reserve.

    Called before they are loaded: without address space they fail in ways that nothing can turn into a sentence, with
    the traceback of an import, or with an abort where native code cannot start a thread.

    Args:
        name: Of the service.
        needed: Bytes that it reserves before it loads a model: mostly code and stacks, not memory in use.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY or limit >= needed:
        return
    print(  # noqa: T201  # for people who start it by hand
        f"{name}: the address space is limited to {limit / GIB:.1f} GiB (ulimit -v), and {needed / GIB:.1f} GiB are "
        "needed before a model is loaded; raise the limit, or limit the memory in use by a control group instead",
        file=sys.stderr,
    )
    sys.exit(1)
