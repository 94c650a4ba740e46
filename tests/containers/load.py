"""Many people asking at once, and what became of each question."""

from __future__ import annotations

import struct
import threading
import time
import zlib
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import triptych

_HEADER = 33  # bytes of a PNG file's signature and of its first chunk


def with_comment(png: bytes, comment: str) -> bytes:
    """The same picture in another PNG file: one that holds a comment, in a chunk of its own after the header."""
    body = b"tEXt" + b"Comment\0" + comment.encode("latin-1")
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return png[:_HEADER] + chunk + png[_HEADER:]


@dataclass(frozen=True)
class Outcome:
    """One question.

    Attributes:
        began: When it was asked, on the monotonic clock.
        ended: When it was over.
        tokens: How many tokens came.
        error: What went wrong, or None.
    """

    began: float
    ended: float
    tokens: int
    error: triptych.TriptychError | None


class Load:
    """Asks about a picture on several threads until it is left.

    Every question brings the picture in a file of its own: one that was seen before would reach no encoder.

    Args:
        address: `host:port` of the gateway.
        picture: A PNG file.
        people: How many ask at once.
    """

    def __init__(self, address: str, picture: bytes, *, people: int = 4) -> None:
        self.outcomes: list[Outcome] = []
        self._address = address
        self._picture = picture
        self._leaving = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(people)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()
        for thread in self._threads:
            thread.join()

    def leave(self) -> None:
        """Ask no more; what was asked comes to its end."""
        self._leaving.set()

    def wait_for(self, more: int, *, seconds: float = 120) -> None:
        """Let it ask on until that many more answers have come, or the time is over."""
        enough, end = len(self.outcomes) + more, time.monotonic() + seconds
        while len(self.outcomes) < enough and time.monotonic() < end:
            time.sleep(0.05)

    @property
    def failures(self) -> list[Outcome]:
        """What went wrong."""
        return [outcome for outcome in self.outcomes if outcome.error is not None]

    def _ask(self, number: int) -> None:
        with triptych.Client(self._address) as client:
            turn = 0
            while not self._leaving.is_set():
                turn += 1
                words = f"What is in the picture, person {number}, turn {turn}?"
                file = with_comment(self._picture, f"{time.monotonic_ns()} {words}")
                question = triptych.user(triptych.Image(file), words)
                began, tokens, failure = time.monotonic(), 0, None
                try:
                    for event in client.chat([question], max_tokens=40, timeout=120):
                        if isinstance(event, triptych.Delta):
                            tokens += len(event.token_ids)
                except triptych.TriptychError as error:
                    failure = error
                self.outcomes.append(Outcome(began, time.monotonic(), tokens, failure))
                if failure is not None:
                    self._leaving.wait(0.2)  # a closed door is not to be stormed
