"""Ends an answer before a stop string: none of it is ever shown."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Ends an answer before the stop string that is complete first, and holds back what may be the beginning of one.

    The result does not depend on how the text is cut into pieces.

    Args:
        stops: The strings, none of them empty.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.hit = False
        """Whether a stop string has come. Nothing may be pushed after."""

    def push(self, text: str) -> str:
        """The text that may be shown now."""
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
        """What was held back, now that nothing follows."""
        held, self._held = self._held, ""
        return held


def beginning(text: str, word: str) -> int:
    """Length of the longest end of `text` that is a beginning of `word`, and not all of it."""
    for length in range(min(len(word) - 1, len(text)), 0, -1):
        if text.endswith(word[:length]):
            return length
    return 0
