"""Ends a server when the process that launched it ends."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

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


def end_with_launcher(arguments: Sequence[str]) -> None:
    """Make the kernel kill this process when its launcher dies, from the first moment on, by the flag `--parent-pid`.

    Imports and loading take seconds, and cannot be interrupted: SIGTERM would end the process only after them. When
    the service serves, `end_with_parent` replaces SIGKILL by SIGTERM.

    Args:
        arguments: The command line, as in `sys.argv`.
    """
    for word, value in zip(arguments, [*arguments[1:], ""], strict=True):
        name, _, beside = word.partition("=")
        if name == "--parent-pid" and (number := beside or value).isdecimal():
            end_with_parent(int(number), signal.SIGKILL)
