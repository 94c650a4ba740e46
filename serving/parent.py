"""Ends a server when the process that launched it ends."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def end_with_parent(parent: int, number: signal.Signals = signal.SIGTERM) -> None:
    """Have this process sent a signal when its parent dies, however the parent dies.

    Linux sends it when the thread that started this process ends, so start it from one that lives as long.
    Elsewhere than on Linux nothing happens: there a launcher that is killed outright leaves its servers behind.

    Args:
        parent: Process id of the parent; where it is gone already, this process ends at once.
        number: SIGTERM ends a server cleanly.
    """
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(0)
