"""Types of command-line arguments, with checks."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from triptych.gateways import addresses_of


def addresses(text: str) -> str:
    """One address or several, separated by commas."""
    try:
        addresses_of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def positive(text: str) -> int:
    """A whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} must be at least 1")
    return value


def counts(text: str) -> tuple[int, ...]:
    """Whole numbers of at least 1, separated by commas."""
    return tuple(positive(part) for part in text.split(","))


def whole(least: int, most: int) -> Callable[[str], int]:
    """The type of whole numbers from `least` to `most`."""

    def integer(text: str) -> int:
        value = int(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{value} must be from {least} to {most}")
        return value

    return integer


def rate(most: float) -> Callable[[str], float]:
    """The type of numbers that are greater than 0 and at most `most`."""

    def number(text: str) -> float:
        value = float(text)
        if not 0 < value <= most:  # also refuses NaN
            raise argparse.ArgumentTypeError(f"{text} must be greater than 0 and at most {most:g}")
        return value

    return number
