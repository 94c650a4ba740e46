"""Returns memory that this process has freed and the C library still holds."""

from __future__ import annotations

import ctypes


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
