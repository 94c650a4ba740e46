"""A pseudo-terminal around a command, and what a person would see on it."""

from __future__ import annotations

import contextlib
import errno
import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from dataclasses import dataclass

from tests.triptych.scripted import SECONDS

ENVIRONMENT = {**os.environ, "TERM": "xterm"}


@dataclass
class Terminal:
    """The terminal and the command that runs on it."""

    process: subprocess.Popen[str]
    master: int
    written: str = ""

    def until(self, text: str) -> None:
        """Read until `text` has been written."""
        deadline = time.monotonic() + SECONDS
        while text not in self.written:
            assert self._read(deadline - time.monotonic()), f"{text!r} never came, but {self.written!r}"

    def end(self) -> int:
        """Read to the end; returns the exit code."""
        deadline = time.monotonic() + SECONDS
        while self._read(deadline - time.monotonic()):
            pass
        return self.process.wait(SECONDS)

    def _read(self, seconds: float) -> bool:
        readable, _, _ = select.select([self.master], [], [], max(seconds, 0))
        assert readable, f"nothing more came after {self.written!r}"
        try:
            data = os.read(self.master, 4096)
        except OSError as error:
            if error.errno != errno.EIO:  # how Linux says that the other side is closed
                raise
            return False
        self.written += data.decode()
        return bool(data)

    def screen(self) -> list[str]:
        """The lines that are seen now: carriage returns and erased lines are carried out, colours left out."""
        lines, column = [""], 0
        for piece in re.findall(r"\x1b\[[0-9;]*[A-Za-z]|[^\x1b]", self.written):
            match piece:
                case "\r":
                    column = 0
                case "\n":
                    lines.append("")
                    column = 0
                case "\x1b[K":
                    lines[-1] = lines[-1][:column]
                case _ if not piece.startswith("\x1b"):
                    lines[-1] = lines[-1][:column].ljust(column) + piece + lines[-1][column + 1 :]
                    column += 1
        return [line for line in lines if line]


@contextlib.contextmanager
def on_terminal(*words: str, columns: int = 80, pipe_stdout: bool = False, term: str = "xterm") -> Iterator[Terminal]:
    """Run `triptych` with its stderr on a terminal of so many columns, and its stdout there, too, or in a pipe."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, columns))
    process = subprocess.Popen(
        [sys.executable, "-m", "triptych_cli", *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if pipe_stdout else slave,
        stderr=slave,
        env={**ENVIRONMENT, "TERM": term},
        text=True,
    )
    os.close(slave)
    try:
        yield Terminal(process, master)
    finally:
        process.kill()
        process.communicate()
        os.close(master)
