"""The command line of checkpoint converters."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.errors import BenchError


def run(words: Sequence[str] | None, make: Callable[[Path, Path], object], *, module: str, description: str) -> None:
    """Write a checkpoint; exits with 1 and a line on stderr if it cannot be written.

    Args:
        words: The arguments, source and target; None takes the process's own.
        make: Writes the target from the source. Raises BenchError if it cannot.
        module: Name of the module, for the usage line.
        description: For the help.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    options = parser.parse_args(words)
    try:
        make(options.source, options.target)
    except BenchError as error:
        parser.exit(1, f"{error}\n")
