"""Values from the command line, checked as they are read."""

from __future__ import annotations

import argparse


def positive(text: str) -> int:
    """A number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} must be at least 1")
    return value


def counts(text: str) -> tuple[int, ...]:
    """Numbers of at least 1, separated by commas."""
    return tuple(positive(part) for part in text.split(","))
