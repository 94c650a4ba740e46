"""Types of command-line arguments, with checks."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from triptych.gateways import addresses_of
from triptych.tls import Tls, credentials_of
from triptych_cli.errors import CommandError


def add_tls(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a TLS connection to a gateway."""
    parser.add_argument("--tls", action="store_true", help="use TLS, and trust public CAs")
    parser.add_argument("--tls-ca", type=Path, metavar="FILE", help="use TLS, and trust the CAs in this PEM file")
    parser.add_argument("--tls-cert", type=Path, metavar="FILE", help="certificate to present; needs --tls-key")
    parser.add_argument("--tls-key", type=Path, metavar="FILE", help="its private key")


def tls_of(options: argparse.Namespace) -> Tls | None:
    """The TLS settings of the flags; None: plain text.

    Raises:
        CommandError: A file cannot be used.
    """
    if not options.tls and options.tls_ca is options.tls_cert is options.tls_key is None:
        return None
    tls = Tls(options.tls_ca, options.tls_cert, options.tls_key)
    try:
        credentials_of(tls)
    except ValueError as error:
        raise CommandError(f"TLS: {error}") from error
    return tls


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


def text(value: str) -> str:
    """A text that is not empty."""
    if not value:
        raise argparse.ArgumentTypeError("must not be empty")
    return value


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
