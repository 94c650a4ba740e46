"""Random streams that training and evaluation can never share.

Every example is made from a generator of its own, named by (split, seed, index): a run can be resumed, repeated or
spread over worker processes and still draw the same examples.
"""

from __future__ import annotations

import random
from enum import StrEnum


class Split(StrEnum):
    """Which side of the fence an example is on: they differ in random stream, image sizes and phrasings."""

    TRAIN = "train"
    HELD_OUT = "held-out"


def stream(split: Split, seed: int, *path: int | str) -> random.Random:
    """The generator for one example; string seeding is stable across processes and Python versions."""
    return random.Random("/".join([split.value, str(seed), *map(str, path)]))
