"""Selects how much of the prompts a step prefills beside decode, from measured speeds.

Speeds are measured at start-up over widths and lengths, once for each bundle and machine. The durations of real steps
correct them: longer contexts and other work on the machine slow decode and prefill down.

Results do not depend on any of this: the phase selects the graph (see `engine/onnx/phases.py`), and the borders of
chunks change no bit.
"""

from __future__ import annotations

import bisect
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import structlog

from serving.cores import cpu_name

log = structlog.get_logger()

# Longest step with prefill, in seconds: a new request, or the cancellation of one, waits for its end.
READING_STEP = 1.0
# Share of it for a chunk that is prefilled between decode steps: a shorter prompt waits for the end of the chunk.
_SHARE_BESIDE = 0.25
# How much the newest run counts in the running mean of how far the measurements are off, and how far that may go.
_WEIGHT = 0.2
_FACTORS = (0.25, 8.0)
# Kinds of runs: whether they decode, and whether they prefill a chunk.
_KINDS = _ANSWERS, _CHUNK, _BOTH = ((True, False), (False, True), (True, True))


@dataclass(frozen=True)
class Curve:
    """Seconds as a function of size: linear between the measurements, extrapolated beyond the last.

    Attributes:
        sizes: Measured sizes, ascending.
        seconds: Duration of each.
    """

    sizes: tuple[int, ...]
    seconds: tuple[float, ...]

    def at(self, size: int) -> float:
        """Seconds for a size."""
        xs, ys = self.sizes, self.seconds
        if size <= xs[-1] or len(xs) == 1:
            return float(np.interp(size, xs, ys)) if len(xs) > 1 else ys[0] * size / xs[0]
        slope = max((ys[-1] - ys[-2]) / (xs[-1] - xs[-2]), 0.0)
        return ys[-1] + slope * (size - xs[-1])


@dataclass(frozen=True)
class Speed:
    """How fast the graphs are.

    Attributes:
        decode: Seconds of a decode step over the number of requests in it.
        prefill: Seconds of a prefill chunk over its tokens, on the graph that prefills.
    """

    decode: Curve
    prefill: Curve


class Pace:
    """Selects chunk sizes by speed, and divides the time of a step between decode and prefill.

    While requests decode, each step gives prefill a fraction of the duration of its decode. If a part of a chunk takes
    longer, the next steps give less.

    Args:
        speed: Speed of the graphs.
        chunk_tokens: Most prompt tokens to prefill in one step.
        stall: Mean slowdown of decode steps for each prompt being prefilled, as a fraction.
        together: Whether one graph computes both phases, so that one run can decode and prefill.
        parts: Number of parts of a chunk, between which decode steps can run.
    """

    def __init__(self, speed: Speed, *, chunk_tokens: int, stall: float, together: bool = True, parts: int = 1) -> None:
        self._speed = speed
        self._chunk_tokens = chunk_tokens
        self._stall = stall
        self._together = together
        self._parts = parts
        self._factors = dict.fromkeys(_KINDS, 1.0)
        self._answering = 0
        self._tokens = 0  # prompt tokens that this step may still prefill
        self._earned = 0.0  # seconds that this step gives to prefill
        self._seconds = 0.0  # of these, what is left; negative if prefill took longer

    def begin(self, answering: int, prompts: int) -> None:
        """Start a step.

        A single new prompt must not slow the running decodes much. When many prompts arrive at once, decode steps of a
        few requests, each of which reads all weights, cost more than a short delay of these few.

        Args:
            answering: Requests that decode in the step.
            prompts: Prompts that could be prefilled.
        """
        self._answering, self._tokens = answering, self._chunk_tokens
        if not answering:
            self._earned = self._seconds = READING_STEP
            return
        self._earned = min(self._stall * max(prompts, 1) * self._expected(answering, 0), READING_STEP)
        debt = 0.0 if self._together else min(self._seconds, 0.0)
        self._seconds = self._earned + debt

    def room(self, answers: int = 0) -> int:
        """Tokens of the next chunk; 0 if the step has no time left.

        Args:
            answers: Requests that decode in the same run.
        """
        if self._tokens < 1 or (not answers and self._seconds <= 0):
            return 0
        seconds = self._seconds
        if not answers and self._answering:
            if self._together:
                # Another run reads all weights again: only if the rest of the step has the time for them.
                return self._most(0, seconds) if self._cost(0, 1) <= seconds else 0
            # Short enough that other prompts get their turn soon, and long enough to be worth reading all weights.
            seconds = max(min(self._earned * self._parts, READING_STEP * _SHARE_BESIDE), 2 * self._cost(0, 1))
        return max(1, self._most(answers, seconds))

    @property
    def over(self) -> bool:
        """Whether the step has no time left for prefill."""
        return self._seconds <= 0

    def take(self, tokens: int) -> None:
        """Record that a chunk of `tokens` tokens is started."""
        self._tokens -= tokens

    def spent(self, seconds: float) -> None:
        """Record the duration of a chunk, or of a part of one, in a run of its own."""
        self._seconds -= seconds

    def took(self, answers: int, tokens: int, seconds: float) -> None:
        """Correct the speeds by the duration of one run.

        Decode, prefill, and both in one run have separate factors: if the slowdown of a mixed run were added to decode
        alone, a chunk that is too large would stay too large. But while every run has a chunk, decode alone is not
        measured, and another process may have taken a core. So when mixed runs become slower, decode alone is assumed
        to become slower by the same factor, until the next run of decode alone.
        """
        kind = _kind(answers, tokens)
        before = self._factors[kind]
        if kind == _BOTH:
            self._seconds -= max(self._cost(answers, tokens), 0.0)
        self._correct(kind, before + _WEIGHT * (seconds / self._measured(answers, tokens) - before))
        if kind == _BOTH:
            self._correct(_ANSWERS, self._factors[_ANSWERS] * self._factors[kind] / before)

    def _correct(self, kind: tuple[bool, bool], factor: float) -> None:
        self._factors[kind] = float(np.clip(factor, *_FACTORS))

    def _most(self, answers: int, seconds: float) -> int:
        """Largest chunk that costs at most `seconds`."""
        sizes = range(1, self._tokens + 1)
        return bisect.bisect_right(sizes, seconds, key=lambda size: self._cost(answers, size))

    def _cost(self, answers: int, tokens: int) -> float:
        """Additional seconds of a run because of its chunk."""
        return self._expected(answers, tokens) - (self._expected(answers, 0) if answers else 0.0)

    def _expected(self, answers: int, tokens: int) -> float:
        return self._factors[_kind(answers, tokens)] * self._measured(answers, tokens)

    def _measured(self, answers: int, tokens: int) -> float:
        """A mixed run takes as long as a chunk of all its tokens: they use the same matrices."""
        return self._speed.prefill.at(answers + tokens) if tokens else self._speed.decode.at(answers)


def _kind(answers: int, tokens: int) -> tuple[bool, bool]:
    return answers > 0, tokens > 0


class Measurements:
    """Measurements of earlier starts, stored in a file.

    Args:
        folders: Directories to read from and write to, in order of preference.
        of: What the measurements depend on, such as machine and graphs; it selects the file.
    """

    def __init__(self, folders: Iterable[Path], of: Mapping[str, object]) -> None:
        described = {**of, "cpu": cpu_name(), "version": 3}
        name = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]
        self._paths = [folder / f"speeds-{name}.json" for folder in folders]

    def load(self) -> Speed | None:
        """What was kept, or None."""
        for path in self._paths:
            try:
                kept = json.loads(path.read_text(encoding="utf-8"))
                return Speed(**{name: Curve(*map(tuple, curve)) for name, curve in kept.items()})
            except FileNotFoundError:
                continue
            except (OSError, ValueError, KeyError, TypeError) as error:
                log.warning("measurements cannot be read and are repeated", path=str(path), error=str(error))
        return None

    def keep(self, speed: Speed) -> None:
        """Write them down, whole or not at all."""
        text = json.dumps({name: [curve.sizes, curve.seconds] for name, curve in vars(speed).items()})
        for path in self._paths:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
                    file.write(text)
                os.replace(file.name, path)  # noqa: PTH105  # a name, as tempfile gives it
            except OSError:
                continue
            return
        log.info("measurements are not stored: no directory is writable")
