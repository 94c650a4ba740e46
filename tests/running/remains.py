"""What a failed test leaves behind is collected before the next test begins, and blamed on the failed one."""

from __future__ import annotations

import contextlib
import gc
import sys
import traceback
from collections.abc import Generator

import grpc.aio
import pytest


class _Failures:
    """Whether a phase of the test that runs has failed."""

    def __init__(self) -> None:
        self.seen = False

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seen = self.seen or report.failed

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        self.seen = False
        done = yield
        if self.seen:
            told = _collect()
            if told:
                reporter = item.config.get_terminal_writer()
                reporter.line(f"\n{item.nodeid} left behind:\n" + "\n".join(told))
        return done


def pytest_configure(config: pytest.Config) -> None:
    """Look at every test."""
    # As long as grpc.aio has a user its poller goes on. Else the last server or channel to be collected would wait for
    # the poller's thread, and for ever where an event loop was closed under a server that ran.
    grpc.aio.init_grpc_aio()
    config.pluginmanager.register(_Failures())


def _collect() -> list[str]:
    """Collect garbage, that of the last failure's traceback included. Returns what its finalizers raised."""
    for name in ("last_type", "last_value", "last_traceback", "last_exc"):
        with contextlib.suppress(AttributeError):
            delattr(sys, name)
    told: list[str] = []

    def hook(raised: sys.UnraisableHookArgs) -> None:
        told.extend(traceback.format_exception_only(raised.exc_type, raised.exc_value))

    former, sys.unraisablehook = sys.unraisablehook, hook
    try:
        gc.collect()
    finally:
        sys.unraisablehook = former
    return told
