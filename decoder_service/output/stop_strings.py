"""Ends an answer before a stop string, no part of which is sent."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Ends an answer before the first complete stop string, and withholds text that may be the beginning of one.

    The result does not depend on how the text is split.

    Args:
        stops: The strings, none of them empty.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.hit = False
        """Whether a stop string was found. Nothing may be pushed afterwards."""

    def push(self, text: str) -> str:
        """Add text, and return the text that may be sent."""
        if not self._stops:
            return text
        text = self._held + text
        found = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        if found:
            self.hit = True
            self._held = ""
            return text[: min(found)[1]]
        held = max(beginning(text, stop) for stop in self._stops)
        shown = len(text) - held
        self._held = text[shown:]
        return text[:shown]

    def flush(self) -> str:
        """The withheld text at the end."""
        held, self._held = self._held, ""
        return held


def beginning(text: str, word: str) -> int:
    """Length of the longest suffix of `text` that is a proper prefix of `word`."""
    for length in range(min(len(word) - 1, len(text)), 0, -1):
        if text.endswith(word[:length]):
            return length
    return 0
