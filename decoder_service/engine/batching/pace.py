"""Selects the graph for a step, and how much of a prompt the step prefills, from measured speeds.

Speeds are measured at start-up over widths and lengths, once for each bundle and machine. The durations of real steps
correct them: longer contexts and other work on the machine slow decode and prefill down.
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
# Weights of the newest run in the moving averages of the correction factors, of its own graph and of the other graphs;
# and the bound of these factors.
_WEIGHT, _WEIGHT_OF_OTHERS = 0.2, 0.02
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
    """How fast one graph is.

    Attributes:
        decode: Seconds of a decode step over the number of requests in it.
        prefill: Seconds of a prefill chunk over its tokens.
    """

    decode: Curve
    prefill: Curve


class Pace:
    """Selects graphs and chunk sizes by speed.

    Args:
        speeds: Speed of each graph, by name.
        chunk_tokens: Most prompt tokens to prefill in one step.
        stall: Maximum slowdown of a decode step for each prompt being prefilled, as a fraction.
    """

    def __init__(self, speeds: Mapping[str, Speed], *, chunk_tokens: int, stall: float) -> None:
        self._speeds = dict(speeds)
        self._chunk_tokens = chunk_tokens
        self._stall = stall
        self._factors = {(name, kind): 1.0 for name in speeds for kind in _KINDS}

    def graph(self, answers: int, tokens: int) -> str:
        """The faster graph for a run that decodes `answers` requests and prefills `tokens` tokens."""
        return min(self._speeds, key=lambda name: self._expected(name, answers, tokens))

    def room(self, answering: int, prompts: int = 1) -> int:
        """Prompt tokens to prefill in this step: at least one, so that every prefill ends.

        A single new prompt must not slow the running decodes much. When many prompts arrive at once, decode steps of a
        few requests, each of which reads all weights, cost more than a short delay of these few.

        Args:
            answering: Requests that decode in the same step.
            prompts: Prompts that could be prefilled.
        """
        allowed = READING_STEP
        if answering:
            allowed = min(allowed, (1 + self._stall * prompts) * self._least(answering, 0))
        sizes = range(1, self._chunk_tokens + 1)
        return max(1, bisect.bisect_right(sizes, allowed, key=lambda size: self._least(answering, size)))

    def took(self, graph: str, answers: int, tokens: int, seconds: float) -> None:
        """Correct the speeds by the duration of one run.

        Decode, prefill, and both in one run have separate factors: if the slowdown of a mixed run were added to decode
        alone, a chunk that is too large would stay too large. But while every run has a chunk, decode alone is not
        measured, and another process may have taken a core. So when mixed runs become slower, decode alone is assumed
        to become slower by the same factor, until the next run of decode alone. A graph that is not chosen would never
        be corrected: its factors slowly follow those of the chosen graph, so that it is tried again.
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
    """A mixed run takes as long as a chunk of all its tokens: they use the same matrices."""
    return speed.prefill.at(answers + tokens) if tokens else speed.decode.at(answers)


class Measurements:
    """Measurements of earlier starts, stored in a file.

    Args:
        folders: Directories to read from and write to, in order of preference.
        of: What the measurements depend on, such as machine and graphs; it selects the file.
    """

    def __init__(self, folders: Iterable[Path], of: Mapping[str, object]) -> None:
        described = {**of, "cpu": cpu_name(), "version": 2}
        name = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]
        self._paths = [folder / f"speeds-{name}.json" for folder in folders]

    def load(self) -> dict[str, Speed] | None:
        """The stored speeds; None if there are none."""
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
                log.warning("measurements cannot be read and are repeated", path=str(path), error=str(error))
        return None

    def keep(self, speeds: Mapping[str, Speed]) -> None:
        """Write the speeds atomically."""
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
        log.info("measurements are not stored: no directory is writable")
