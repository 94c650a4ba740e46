"""A progress bar of one line on a terminal, erased before other output."""

from __future__ import annotations

import os
import threading
import time
from types import TracebackType
from typing import Self, TextIO

_TICK_SECONDS = 1.0
_CELLS = 20
_ERASE = "\r\x1b[K"  # moves the cursor to the first column and erases the line


def is_terminal(stream: TextIO) -> bool:
    """Whether the stream is a terminal that can erase a line."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


class ProgressBar:
    """A progress bar of one line: the activity, its progress, and the seconds since the start.

    It is drawn at each change and once a second, and erased by `close` and at the end of a `with` block.

    Args:
        stream: The terminal.
        enabled: Whether to draw.
    """

    def __init__(self, stream: TextIO, *, enabled: bool) -> None:
        self._stream = stream
        self._enabled = enabled
        self._start = time.monotonic()
        self._what = ""
        self._lock = threading.Lock()
        self._closed = threading.Event()
        # Not tqdm: it redraws only when it is called, so it would also need this thread, and it would be a dependency
        # of the base package, which every image installs.
        self._ticking = threading.Thread(target=self._tick, daemon=True)

    def show(self, what: str, done: int = 0, total: int = 0) -> None:
        """Show another state.

        Args:
            what: The activity.
            done: Finished units of it.
            total: All units of it; 0 if unknown.
        """
        if not self._enabled or self._closed.is_set():
            return
        with self._lock:
            self._what = what if total == 0 else _bar(what, min(done / total, 1.0))
            self._draw()
        if self._ticking.ident is None:
            self._ticking.start()

    def close(self) -> None:
        """Erase the line and stop drawing."""
        self._closed.set()
        with self._lock:
            if self._what:  # drawn, and not erased yet
                self._write(_ERASE)
                self._what = ""

    def _tick(self) -> None:
        while not self._closed.wait(_TICK_SECONDS):
            with self._lock:
                self._draw()

    def _draw(self) -> None:
        if not self._closed.is_set():
            line = f"{self._what} {time.monotonic() - self._start:.0f} s"
            self._write(_ERASE + line[: self._columns() - 1])  # a wrapped line could not be erased

    def _columns(self) -> int:
        try:
            return os.get_terminal_size(self._stream.fileno()).columns or 80  # 0: unknown
        except OSError:
            return 80

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _bar(what: str, share: float) -> str:
    filled = int(share * _CELLS)
    return f"{what} {int(100 * share)}% [{'#' * filled}{'.' * (_CELLS - filled)}]"
