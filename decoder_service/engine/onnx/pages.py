"""Memory that a process has because a file is mapped into it, and gives back.

ONNX Runtime maps a graph's weights. Whoever has made its own form of them, ours or ONNX Runtime's, does not read the
file again, yet its pages stay and look like memory that the process needs.
"""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path


def let_go(file: Path) -> None:
    """Give back this process's pages of a file. What is read again comes from the system's cache, or the disk.

    Args:
        file: Mapped, if at all, for reading alone.
    """
    if not hasattr(mmap, "MADV_DONTNEED"):
        return
    name = str(file.resolve())
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return
    libc = ctypes.CDLL(None)
    for line in lines:
        addresses, permissions, _, _, _, *path = line.split(maxsplit=5)
        if path == [name] and "w" not in permissions:
            start, stop = (int(address, 16) for address in addresses.split("-"))
            libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), mmap.MADV_DONTNEED)
