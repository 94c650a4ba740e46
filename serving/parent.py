"""Ties a server's life to the process that launched it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def stop_with_parent(parent: int) -> None:
    """Have this process stopped cleanly (SIGTERM) when its parent dies, however the parent dies.

    Elsewhere than on Linux nothing happens: there a launcher that is killed outright leaves its servers behind.

    Args:
        parent: Process id of the parent; where it is gone already, this process ends at once.
    """
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(0)
