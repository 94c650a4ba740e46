"""Processes that tests start: they never outlive the test, and what they print is not waited for without end."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import select
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

T = TypeVar("T")

PATIENCE = 120.0  # seconds; far more than anything here takes on a machine that is busy with something else


def apart(function: Callable[..., T], *arguments: object) -> T:
    """Call a function of a module in a process of its own, with nothing that other tests have left in this one."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply_async(function, arguments).get(PATIENCE)


@contextlib.contextmanager
def started(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Start a process whose output `line` and `rest` read; it is killed at the end of the block if it still runs.

    Args:
        command: Its words.
        options: Of `subprocess.Popen`.
    """
    options = {"stdout": subprocess.PIPE, **options}
    with subprocess.Popen(command, bufsize=0, **options) as process:
        try:
            yield process
        finally:
            process.kill()


def line(output: Any, awaited: str, seconds: float = PATIENCE) -> str:
    """The next line of a process's output, or what there is of it before the output's end.

    Args:
        output: `stdout` or `stderr` of what `started` gave.
        awaited: What the line says, for the failure when none comes.
        seconds: How long to wait.
    """
    return _read(output, awaited, seconds, b"\n")


def rest(output: Any, awaited: str, seconds: float = PATIENCE) -> str:
    """Everything until the output's end, which comes when all have ended that hold it.

    Args:
        output: As for `line`.
        awaited: Whose end is waited for, for the failure when it does not come.
        seconds: How long to wait.
    """
    return _read(output, awaited, seconds, None)


def _read(output: Any, awaited: str, seconds: float, end: bytes | None) -> str:
    got, until = b"", time.monotonic() + seconds
    while end is None or not got.endswith(end):
        ready, _, _ = select.select([output], [], [], max(until - time.monotonic(), 0))
        assert ready, f"waited {seconds:g} s for {awaited}; there was only {got.decode()!r}"
        if not (byte := os.read(output.fileno(), 1)):
            break
        got += byte
    return got.decode()
