"""What a person reads who started the checks."""

from __future__ import annotations


def say(line: str) -> None:
    """Print a line now."""
    print(line, flush=True)  # noqa: T201  # that is what it is for


class Report:
    """Prints one line a check and counts them."""

    def __init__(self) -> None:
        self.passed = self.failed = 0

    def check(self, what: str, passed: bool, detail: str = "") -> None:
        """One check that has been made.

        Args:
            what: What holds where it passed.
            passed: Whether it did.
            detail: What was seen.
        """
        self.passed, self.failed = self.passed + passed, self.failed + (not passed)
        say(f"{'PASS' if passed else 'FAIL'}  {what}" + (f"  [{detail}]" if detail else ""))
