"""How long things take on this machine, and what follows: how much of prompts is read beside answers.

Measured at start-up over widths and lengths, once for each bundle and machine. While the engine runs, what steps really
take corrects it: longer contexts and other work on the machine slow both kinds of steps down.

None of this is felt in answers: which graph computes what is fixed (see `engine/onnx/phases.py`), and where a prompt is
cut changes no bit.
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

# How long a step that reads may take, in seconds: a request that comes, or is called off, waits for its end.
READING_STEP = 1.0
# Of that, what a chunk that is read between steps of answers takes at most: a shorter prompt waits for its end.
_SHARE_BESIDE = 0.25
# How much the newest run counts in the running mean of how far the measurements are off, and how far that may go.
_WEIGHT = 0.2
_FACTORS = (0.25, 8.0)
# Of runs: whether there are answers in them, and whether there is a chunk.
_KINDS = _ANSWERS, _CHUNK, _BOTH = ((True, False), (False, True), (True, True))


@dataclass(frozen=True)
class Curve:
    """Seconds over a size: straight lines between what was measured, and the last one beyond it.

    Attributes:
        sizes: Rising.
        seconds: One for each.
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
        decode: Seconds of a step over how many requests are in it, on the graph that computes answers.
        prefill: Seconds of a chunk over its tokens, on the graph that reads prompts.
    """

    decode: Curve
    prefill: Curve


class Pace:
    """Gives prompts their share of the time.

    While requests answer, each step gives prompts a part of the time that it takes itself. Where a part of a chunk takes
    longer than that, the next steps give less.

    Args:
        speed: Of the graphs.
        chunk_tokens: Most tokens of prompts to read in one step.
        stall: While requests answer: how much longer a step may take because it also reads, in steps that only
            answer, for each prompt that could be read.
        together: Whether one graph does both, so that a chunk can go beside answers in their run.
        parts: In how many parts a chunk that is alone is computed, if answers' steps may come between them.
    """

    def __init__(self, speed: Speed, *, chunk_tokens: int, stall: float, together: bool = True, parts: int = 1) -> None:
        self._speed = speed
        self._chunk_tokens = chunk_tokens
        self._stall = stall
        self._together = together
        self._parts = parts
        self._factors = dict.fromkeys(_KINDS, 1.0)
        self._answering = 0
        self._tokens = 0  # that this step may still read
        self._earned = 0.0  # seconds that this step gives to prompts
        self._seconds = 0.0  # that are left for reading; below 0 where reading took too long

    def begin(self, answering: int, prompts: int) -> None:
        """A step begins.

        One prompt that comes must not be felt much by those who answer. Where many come at once, far more is lost by
        steps of a few answers, each of which reads all weights, than by letting those few wait a little.

        Args:
            answering: How many requests have a token in it.
            prompts: How many could be read.
        """
        self._answering, self._tokens = answering, self._chunk_tokens
        if not answering:
            self._earned = self._seconds = READING_STEP
            return
        self._earned = min(self._stall * max(prompts, 1) * self._expected(answering, 0), READING_STEP)
        debt = 0.0 if self._together else min(self._seconds, 0.0)
        self._seconds = self._earned + debt

    def room(self, answers: int = 0) -> int:
        """Tokens of a prompt to read in the next run: 0 where there is no more time in this step.

        Args:
            answers: How many have their token in the same run.
        """
        if self._tokens < 1 or (not answers and self._seconds <= 0):
            return 0
        seconds = self._seconds
        if not answers and self._answering:
            if self._together:
                # It reads all weights again: not for the rest of a step that has not the time for them.
                return self._most(0, seconds) if self._cost(0, 1) <= seconds else 0
            # Short enough for others to have their turn soon, and long enough to be worth its reading of all weights.
            seconds = max(min(self._earned * self._parts, READING_STEP * _SHARE_BESIDE), 2 * self._cost(0, 1))
        return max(1, self._most(answers, seconds))

    @property
    def over(self) -> bool:
        """Whether there is no more time for reading in this step."""
        return self._seconds <= 0

    def read(self, tokens: int) -> None:
        """A chunk of so many tokens is being read."""
        self._tokens -= tokens

    def spent(self, seconds: float) -> None:
        """Reading alone, or a part of it, took so long."""
        self._seconds -= seconds

    def took(self, answers: int, tokens: int, seconds: float) -> None:
        """A run of so many answers, and of a chunk of so many tokens, took so long.

        Answers, chunks, and both at once are corrected apart: if what answers and a chunk take longer were added to the
        time of answers alone, a chunk that is too large would stay so. But while every run has a chunk, answers alone
        are not measured, and another process may have taken a core. So when answers and a chunk become slower, answers
        alone are taken to become slower by the same factor, until the next run of answers alone.
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
        """Most tokens of a chunk that cost no more."""
        sizes = range(1, self._tokens + 1)
        return bisect.bisect_right(sizes, seconds, key=lambda size: self._cost(answers, size))

    def _cost(self, answers: int, tokens: int) -> float:
        """How much longer it takes because of the chunk."""
        return self._expected(answers, tokens) - (self._expected(answers, 0) if answers else 0.0)

    def _expected(self, answers: int, tokens: int) -> float:
        return self._factors[_kind(answers, tokens)] * self._measured(answers, tokens)

    def _measured(self, answers: int, tokens: int) -> float:
        """A run of both takes as long as a chunk of them all: they go through the same matrices."""
        return self._speed.prefill.at(answers + tokens) if tokens else self._speed.decode.at(answers)


def _kind(answers: int, tokens: int) -> tuple[bool, bool]:
    return answers > 0, tokens > 0


class Measurements:
    """What was measured before, kept in a file.

    Args:
        folders: Where to look and to write, the best first.
        of: What the measurements hold for; another machine or another graph has another file.
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
                log.warning("measurements cannot be read and are made again", path=str(path), error=str(error))
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
        log.info("measurements are not kept: no place for them can be written")
