"""Frees resident pages of mapped files.

ONNX Runtime maps a graph's weights. Once an operator has repacked them, the file is not read again, but its pages stay
resident and count as memory of the process.
"""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path


def release_pages(file: Path) -> None:
    """Free this process's pages of a file. Later reads come from the page cache or the disk.

    Args:
        file: A file that is mapped read-only, or not mapped.
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
