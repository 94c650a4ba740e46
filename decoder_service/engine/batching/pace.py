"""How long things take on this machine, and what follows: which graph runs a step, and how much of a prompt it reads.

Measured at start-up over widths and lengths, once for each bundle and machine. While the engine runs, what steps really
take corrects it: longer contexts and other work on the machine slow both kinds of steps down.
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
# How much the newest run counts in the running mean of how far its graph's measurements are off, and the other graphs';
# and how far that may go.
_WEIGHT, _WEIGHT_OF_OTHERS = 0.2, 0.02
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
    """How fast one graph is.

    Attributes:
        decode: Seconds of a step over how many requests are in it.
        prefill: Seconds of a chunk over its tokens.
    """

    decode: Curve
    prefill: Curve


class Pace:
    """Chooses by speeds.

    Args:
        speeds: Of each graph.
        chunk_tokens: Most tokens of a prompt to read in one step.
        stall: While requests answer: how much longer a step may take because it also reads, in steps that only
            answer, for each prompt that could be read.
    """

    def __init__(self, speeds: Mapping[str, Speed], *, chunk_tokens: int, stall: float) -> None:
        self._speeds = dict(speeds)
        self._chunk_tokens = chunk_tokens
        self._stall = stall
        self._factors = {(name, kind): 1.0 for name in speeds for kind in _KINDS}

    def graph(self, answers: int, tokens: int) -> str:
        """The graph for a run of so many answers, and of a chunk of so many tokens."""
        return min(self._speeds, key=lambda name: self._expected(name, answers, tokens))

    def room(self, answering: int, prompts: int = 1) -> int:
        """Tokens of prompts to read in this step: at least one, so that every prompt is read at last.

        One prompt that comes must not be felt much by those who answer. Where many come at once, far more is lost by
        steps of a few answers, each of which reads all weights, than by letting those few wait a little.

        Args:
            answering: How many requests have their step beside it.
            prompts: How many could be read.
        """
        allowed = READING_STEP
        if answering:
            allowed = min(allowed, (1 + self._stall * prompts) * self._least(answering, 0))
        sizes = range(1, self._chunk_tokens + 1)
        return max(1, bisect.bisect_right(sizes, allowed, key=lambda size: self._least(answering, size)))

    def took(self, graph: str, answers: int, tokens: int, seconds: float) -> None:
        """A run of so many answers, and of a chunk of so many tokens, took so long on that graph.

        Answers, chunks, and both at once are corrected apart: if what answers and a chunk take longer were added to the
        time of answers alone, a chunk that is too large would stay so. But while every run has a chunk, answers alone
        are not measured, and another process may have taken a core. So when answers and a chunk become slower, answers
        alone are taken to become slower by the same factor, until the next run of answers alone. A graph that is not
        chosen would never be corrected: its factors slowly follow those of the chosen one, and so it is tried again.
        """
        kind = _kind(answers, tokens)
        ratio = seconds / _seconds(self._speeds[graph], answers, tokens)
        before = self._factors[graph, kind]
        for name in self._speeds:
            weight = _WEIGHT if name == graph else _WEIGHT_OF_OTHERS
            self._correct(name, kind, self._factors[name, kind] + weight * (ratio - self._factors[name, kind]))
        if kind == _BOTH:
            slower = self._factors[graph, kind] / before
            for name in self._speeds:
                self._correct(name, _ANSWERS, self._factors[name, _ANSWERS] * slower)

    def _correct(self, graph: str, kind: tuple[bool, bool], factor: float) -> None:
        self._factors[graph, kind] = float(np.clip(factor, *_FACTORS))

    def _expected(self, graph: str, answers: int, tokens: int) -> float:
        return self._factors[graph, _kind(answers, tokens)] * _seconds(self._speeds[graph], answers, tokens)

    def _least(self, answers: int, tokens: int) -> float:
        return min(self._expected(graph, answers, tokens) for graph in self._speeds)


def _kind(answers: int, tokens: int) -> tuple[bool, bool]:
    return answers > 0, tokens > 0


def _seconds(speed: Speed, answers: int, tokens: int) -> float:
    """A run of both takes as long as a chunk of them all: they go through the same matrices."""
    return speed.prefill.at(answers + tokens) if tokens else speed.decode.at(answers)


class Measurements:
    """What was measured before, kept in a file.

    Args:
        folders: Where to look and to write, the best first.
        of: What the measurements hold for; another machine or another graph has another file.
    """

    def __init__(self, folders: Iterable[Path], of: Mapping[str, object]) -> None:
        described = {**of, "cpu": cpu_name(), "version": 2}
        name = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]
        self._paths = [folder / f"speeds-{name}.json" for folder in folders]

    def load(self) -> dict[str, Speed] | None:
        """What was kept, or None."""
        for path in self._paths:
            try:
                kept = json.loads(path.read_text(encoding="utf-8"))
                return {
                    name: Speed(*(Curve(tuple(curve["sizes"]), tuple(curve["seconds"])) for curve in curves))
                    for name, curves in kept.items()
                }
            except FileNotFoundError:
                continue
            except (OSError, ValueError, KeyError, TypeError) as error:
                log.warning("measurements cannot be read and are made again", path=str(path), error=str(error))
        return None

    def keep(self, speeds: Mapping[str, Speed]) -> None:
        """Write them down, whole or not at all."""
        text = json.dumps({name: [vars(speed.decode), vars(speed.prefill)] for name, speed in speeds.items()})
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
