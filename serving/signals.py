"""The signals that end a program. Imports nothing that takes time: it is wanted before everything else."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


def ending_signals() -> tuple[signal.Signals, ...]:
    """Ctrl-C, a supervisor's SIGTERM, and SIGHUP of a terminal that is closed.

    Those that are ignored are not among them and stay so: `nohup` ignores SIGHUP, a shell's background SIGINT.
    """
    known = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    return tuple(number for number in known if signal.getsignal(number) is not signal.SIG_IGN)


INTERRUPTED = 128 + signal.SIGINT
"""The exit code of a program that Ctrl-C has ended, as shells have it."""


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP."""


def interrupt_on_signals() -> None:
    """Have each of them raise KeyboardInterrupt, so that what runs cleans up; `Terminated` if it is not Ctrl-C."""
    for number in ending_signals():
        # asyncio takes the place of this handler of Ctrl-C, and of no other.
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else _terminate)


def end_at_once_on_signals() -> None:
    """Have each of them end the process without unwinding, until the next call of `interrupt_on_signals`.

    For imports: an exception there may come out as a traceback, and they leave nothing to clean up.
    """
    for number in ending_signals():
        signal.signal(number, _end)


@contextmanager
def importing() -> Iterator[None]:
    """End the process at once at a signal while the block runs; then signals do what they did before.

    Nothing changes in a thread, to which signals do not come.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in ending_signals()}
    end_at_once_on_signals()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _terminate(number: int, frame: FrameType | None) -> None:  # as `signal` calls it
    raise Terminated


def _end(number: int, frame: FrameType | None) -> None:  # as `signal` calls it
    os.write(2, b"triptych: interrupted\n")
    os._exit(INTERRUPTED if number == signal.SIGINT else 1)
