"""Memory that this process no longer uses and the C library still holds."""

from __future__ import annotations

import ctypes


def release_freed_memory() -> bool:
    """Return freed memory to the operating system.

    glibc keeps freed blocks for later allocations. Loading a model frees as much as it keeps, which no later allocation
    needs.

    Returns:
        Whether the C library can do so (glibc); elsewhere nothing happens.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is None:
        return False
    trim(ctypes.c_size_t(0))
    return True
