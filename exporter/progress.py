"""Progress bars on stderr, and silence for the libraries that would write between them."""

import contextlib
import io
import logging
import sys
import warnings
from collections.abc import Callable, Iterator

import transformers
from tqdm import tqdm

_log = logging.getLogger(__name__)

Advance = Callable[[int], None]
"""Moves a bar on by a number of its units."""


class Progress:
    """Makes the bars of one export.

    Args:
        enabled: True shows bars, False shows none, None shows them when stderr is a terminal.
    """

    def __init__(self, *, enabled: bool | None = None) -> None:
        # Kept from before `quiet()` redirects it: the bars go on while the libraries are silenced.
        self._stream = sys.stderr
        self.enabled = self._stream.isatty() if enabled is None else enabled

    @contextlib.contextmanager
    def bar(self, title: str, total: int, unit: str) -> Iterator[Advance]:
        """Show a bar of `total` units; `unit` "B" counts bytes and is written in binary multiples."""
        is_bytes = unit == "B"
        with tqdm(
            desc=f"{title:<18}",
            total=total,
            unit=unit if is_bytes else f" {unit}",
            unit_scale=is_bytes,
            unit_divisor=1024,
            file=self._stream,
            disable=not self.enabled,
        ) as shown:

            def advance(units: int) -> None:
                shown.update(units)

            yield advance


class _LineLogger(io.TextIOBase):
    """A text stream whose lines become log records."""

    def write(self, text: str) -> int:
        for line in text.splitlines():
            if line.strip():
                _log.debug("%s", line.strip())
        return len(text)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Turn what libraries print and warn meanwhile into debug records of this module's logger.

    The redirection is of the whole process: it is meant for a command, not for a server.
    """
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(logging.ERROR)
    try:
        with (
            contextlib.redirect_stdout(_LineLogger()),
            contextlib.redirect_stderr(_LineLogger()),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.logging.set_verbosity(verbosity)
