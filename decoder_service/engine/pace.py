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
# How much the newest step counts in the running mean of how far measurements are off, and how far it may go.
_WEIGHT = 0.2
_LEAST_FACTOR, _GREATEST_FACTOR = 0.25, 8.0


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
        self._decode_factor = self._prefill_factor = 1.0

    def graph(self, answers: int, tokens: int) -> str:
        """The graph for a run of so many answers, and of a chunk of so many tokens."""
        return min(self._speeds, key=lambda name: _seconds(self._speeds[name], answers, tokens))

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
            longest = 1 + self._stall * prompts
            allowed = min(allowed, longest * self._expected(answering, 0) * self._decode_factor)
        allowed /= self._prefill_factor
        sizes = range(1, self._chunk_tokens + 1)
        return max(1, bisect.bisect_right(sizes, allowed, key=lambda size: self._expected(answering, size)))

    def took(self, answers: int, tokens: int, seconds: float) -> None:
        """A run of so many answers, and of a chunk of so many tokens, took so long.

        What a run of both took longer is laid on the chunk. Laid on the answers, too, it would allow the next run more
        time, and a chunk that is too large would stay so.
        """
        ratio = seconds / self._expected(answers, tokens)
        if tokens:
            self._prefill_factor = _follow(self._prefill_factor, ratio)
        else:
            self._decode_factor = _follow(self._decode_factor, ratio)

    def _expected(self, answers: int, tokens: int) -> float:
        return min(_seconds(speed, answers, tokens) for speed in self._speeds.values())


def _seconds(speed: Speed, answers: int, tokens: int) -> float:
    """A run of both takes as long as a chunk of them all: they go through the same matrices."""
    return speed.prefill.at(answers + tokens) if tokens else speed.decode.at(answers)


def _follow(factor: float, seen: float) -> float:
    return float(np.clip(factor + _WEIGHT * (seen - factor), _LEAST_FACTOR, _GREATEST_FACTOR))


class Measurements:
    """What was measured before, kept in a file.

    Args:
        folders: Where to look and to write, the best first.
        of: What the measurements hold for; another machine or another graph has another file.
    """

    def __init__(self, folders: Iterable[Path], of: Mapping[str, object]) -> None:
        described = {**of, "cpu": cpu_name(), "version": 1}
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
