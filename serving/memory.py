"""The memory of this process: how much it may use, what happens without it, and the return of what was freed."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import sys
from collections.abc import Iterator
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
    """Bytes of the machine's memory, at most the limits of its control group and of its address space (`ulimit -v`).

    Args:
        memory_max: Linux's file of the limit: bytes, or `max`.
    """
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        whole = min(whole, limit)
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


_NO_MEMORY = ("allocate memory", "bad_alloc", "bad allocation", "failed to map segment", "can't start new thread")
"""What the messages of libraries without an exception class for it contain: libc, PyTorch, ONNX Runtime, the dynamic
linker and Python's threads."""


def lacks_memory(error: BaseException) -> bool:
    """Whether an allocation failed."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in _NO_MEMORY)


@contextlib.contextmanager
def ending_without_memory(name: str) -> Iterator[None]:
    """End the process with one line and exit code 1 if an allocation fails in the block: while it imports and loads.

    Args:
        name: Name of the service.
    """
    try:
        yield
    except Exception as error:
        if not lacks_memory(error):
            raise
        first = str(error).partition("\n")[0] or type(error).__name__
        print(  # noqa: T201  # for people who start it by hand
            f"{name}: there is not enough memory to start ({first}): raise the limit of the process or its container",
            file=sys.stderr,
        )
        sys.exit(1)
