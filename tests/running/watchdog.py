"""A run that hangs ends: it says what it waited for, shows where each thread is, and fails.

pytest-timeout raises in a test that takes too long, and the run goes on. What that cannot end, this ends, with all
child processes: a test that goes on after its time-out, a session, and an exit, where a thread or a garbage collection
may wait for ever.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import gc
import os
import sys
import threading
import time
from collections.abc import Generator

import psutil
import pytest

from tests.running.limits import seconds_of


def pytest_addoption(parser: pytest.Parser) -> None:
    """The bounds, in seconds; `pytest -o session_bound=…` sets another."""
    parser.addini("session_bound", "Seconds after which a run is ended.", default="2400")
    parser.addini("test_grace", "Seconds after its time-out after which a test is ended.", default="60")
    parser.addini("exit_bound", "Seconds after the last test after which the interpreter is ended.", default="60")


def pytest_configure(config: pytest.Config) -> None:
    """Start to watch."""
    config.pluginmanager.register(Watchdog(config))


class Watchdog:
    """Ends the process when one of its bounds is passed."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        # Output is captured while tests run, but not what is written here.
        self._stderr = os.dup(2)
        self._changed = threading.Condition()
        self._bounds: dict[str, tuple[float, str]] = {}
        self._code = 1
        self._failed: list[str] = []
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        seconds = self._seconds("session_bound")
        self._set("session", seconds, f"The run has taken more than {seconds:g} s.")

    def _seconds(self, name: str) -> float:
        return float(self._config.getini(name))

    def _set(self, name: str, seconds: float, sentence: str) -> None:
        with self._changed:
            self._bounds[name] = time.monotonic() + seconds, sentence
            self._changed.notify()

    def _clear(self, name: str) -> None:
        with self._changed:
            self._bounds.pop(name, None)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        if not (seconds := seconds_of(item)):
            return (yield)
        seconds += self._seconds("test_grace")
        self._set("test", seconds, f"{item.nodeid} has taken {seconds:g} s and cannot be ended by its time-out.")
        try:
            return (yield)
        finally:
            self._clear("test")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._failed.append(report.nodeid)

    def pytest_enter_pdb(self) -> None:
        with self._changed:
            self._bounds.clear()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self, exitstatus: int) -> Generator[None]:
        self._code = int(exitstatus) or 1
        return (yield)

    @pytest.hookimpl(tryfirst=True)
    def pytest_unconfigure(self) -> None:
        seconds = self._seconds("exit_bound")
        self._clear("session")
        self._set("exit", seconds, f"The tests are over, but the interpreter has not ended within {seconds:g} s.")
        # Of the interpreter's end the watchdog, a thread, sees only the beginning. So the last of what may wait there
        # is done while it still runs, and faulthandler, which needs no interpreter, ends what is left.
        atexit.register(gc.collect)
        faulthandler.dump_traceback_later(seconds + 5, exit=True, file=self._stderr)

    def _watch(self) -> None:
        with self._changed:
            while True:
                end, sentence = min(self._bounds.values(), default=(None, ""))
                if end is not None and (left := end - time.monotonic()) <= 0:
                    break
                self._changed.wait(None if end is None else left)
        self._end(sentence)

    def _end(self, sentence: str) -> None:
        # Should the following wait for a lock of a thread that hangs.
        faulthandler.dump_traceback_later(10, exit=True, file=self._stderr)
        failed = "".join(f"\nFAILED {name}" for name in self._failed)
        os.write(self._stderr, f"\n\n{sentence} Where each thread is:\n\n".encode())
        faulthandler.dump_traceback(self._stderr)
        os.write(self._stderr, f"\n{sentence}{failed}\n".encode())
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        with contextlib.suppress(ValueError):  # it is closed
            sys.stdout.flush()
        os._exit(self._code)
