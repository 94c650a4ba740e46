"""The scheduling priority of another process."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def lower_priority(pid: int, nice: int) -> None:
    """Lower the priority of a process that has just been started, as far as the system allows.

    With autogroups, Linux first divides the cores between sessions, and niceness counts only within a session. So the
    process's session, if it leads one, gets the same niceness.

    Args:
        pid: The process.
        nice: Its niceness, 0 to 19; each step reduces its share of a busy core by about a fifth.
    """
    with contextlib.suppress(OSError):  # it has ended, or its priority is lower already
        os.setpriority(os.PRIO_PROCESS, pid, nice)
    with contextlib.suppress(OSError):  # no autogroups
        if os.getsid(pid) == pid:
            Path(f"/proc/{pid}/autogroup").write_text(str(nice))
