"""Separate random streams for training and evaluation.

Every example is made from a generator of its own, named by (split, seed, index): a run can be resumed, repeated or
spread over worker processes and still draw the same examples.
"""

from __future__ import annotations

import random
from enum import StrEnum


class Split(StrEnum):
    """Training or evaluation; they differ in random stream, image sizes and phrasings."""

    TRAIN = "train"
    HELD_OUT = "held-out"


def stream(split: Split, seed: int, *path: int | str) -> random.Random:
    """The generator for one example; string seeding is stable across processes and Python versions."""
    return random.Random("/".join([split.value, str(seed), *map(str, path)]))
