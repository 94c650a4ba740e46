"""How short answers are compared with those that are right, as the benchmarks that people quote do it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from statistics import NormalDist
from typing import NamedTuple

from rapidfuzz.distance import Levenshtein

from evaluation.questions import Metric

_NUMBER = re.compile(r"\$?([-+]?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+)(?:e[-+]?\d+)?)(%?)\.?")
_ANLS_THRESHOLD = 0.5
_RELAXED_TOLERANCE = 0.05


class Interval(NamedTuple):
    """A range."""

    low: float
    high: float


def exact(answer: str, right: str) -> float:
    """1 where both are the same but for case, spaces and a full stop at the end, else 0."""
    return float(_plain(answer) == _plain(right))


def anls(answer: str, right: str) -> float:
    """Normalized Levenshtein similarity, as DocVQA has it: 0 where half of the characters differ, or more."""
    distance = Levenshtein.normalized_distance(_plain(answer), _plain(right))
    return 1 - distance if distance < _ANLS_THRESHOLD else 0.0


def relaxed(answer: str, right: str) -> float:
    """1 where a number is within 5% of the right one, as ChartQA has it, or another answer is the same; else 0."""
    given, wanted = _number(answer), _number(right)
    if given is None or not wanted:
        return exact(answer, right)
    return float(abs(given - wanted) <= _RELAXED_TOLERANCE * abs(wanted))


_METRICS: Mapping[Metric, Callable[[str, str], float]] = {"exact": exact, "anls": anls, "relaxed": relaxed}


def best(metric: Metric, answer: str, right: Sequence[str]) -> float:
    """The score of an answer by the nearest of those that are right, from 0 to 1."""
    return max(_METRICS[metric](answer, one) for one in right)


def interval(mean: float, count: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a mean of scores from 0 to 1.

    For scores of 0 and 1 it is the usual one; for those between, such as ANLS, it is on the wide side.
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    centre = (mean + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(mean * (1 - mean) / count + z**2 / (4 * count**2))
    return Interval(max(0.0, centre - half), min(1.0, centre + half))


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).removesuffix(".")


def _number(text: str) -> float | None:
    """A number, also with a percent sign (which divides it by 100) or commas between the thousands."""
    match = re.fullmatch(
        r"\$?([-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?:e[-+]?\d+)?)(%?)\.?", text.strip().casefold()
    )
    if match is None or not re.search(r"\d", match[1]):
        return None
    value = float(match[1].replace(",", ""))
    return value / 100 if match[2] else value
