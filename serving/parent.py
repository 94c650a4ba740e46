"""Ends a server when the process that launched it ends."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def end_with_parent(parent: int, number: signal.Signals = signal.SIGTERM) -> None:
    """Make the kernel send this process a signal when its parent dies, for any reason.

    Linux sends it when the thread that started this process ends, so that thread must live as long as the process.
    On other systems nothing happens: a launcher that is killed leaves its servers running.

    Args:
        parent: Process id of the parent; if it has ended already, this process ends at once.
        number: SIGTERM ends a server cleanly.
    """
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(0)
