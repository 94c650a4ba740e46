"""Image sizes: any from 64 to 448 pixels a side with an aspect ratio up to 3:1, grouped by their number of patches.

A training batch holds images of one patch count, so that the encoder can attend to them as one dense batch.
"""

from __future__ import annotations

import random
from functools import cache

from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from demo.config import LONGEST_EDGE, MERGE_SIZE, PATCH_SIZE, SHORTEST_EDGE
from demo.seeds import Split

SMALLEST, LARGEST, MAX_ASPECT = 64, 448, 3.0
_FACTOR = PATCH_SIZE * MERGE_SIZE

Size = tuple[int, int]  # width, height


def held_out(size: Size) -> bool:
    """Sizes that training never draws: one in seven, spread evenly."""
    width, height = size
    return (width + 3 * height) % 7 == 0


def resized(size: Size) -> Size:
    """The size in which the encoder is shown an image of that size."""
    width, height = size
    shown_height, shown_width = smart_resize(height, width, _FACTOR, SHORTEST_EDGE, LONGEST_EDGE)
    return int(shown_width), int(shown_height)


def media_tokens(size: Size) -> int:
    """How many placeholder tokens an image of that size takes in the prompt."""
    width, height = resized(size)
    return width * height // _FACTOR**2


def random_size(rng: random.Random, split: Split) -> Size:
    """A size of the split: a third are squares, since that is what people draw most."""
    while True:
        width = rng.randint(SMALLEST, LARGEST)
        height = width if rng.random() < 0.33 else rng.randint(SMALLEST, LARGEST)
        if max(width, height) > MAX_ASPECT * min(width, height):
            continue
        if held_out((width, height)) == (split is Split.HELD_OUT):
            return width, height


@cache
def _training_sizes() -> dict[int, list[Size]]:
    rng = random.Random("sizes")
    groups: dict[int, list[Size]] = {}
    for _ in range(20_000):
        size = random_size(rng, Split.TRAIN)
        groups.setdefault(media_tokens(size), []).append(size)
    return groups


def training_sizes(tokens: int) -> list[Size]:
    """Many training sizes that take exactly that many tokens."""
    return _training_sizes()[tokens]


def random_token_count(rng: random.Random, largest: int | None = None) -> int:
    """A token count, as frequent as the sizes that lead to it; at most `largest` if given."""
    groups = _training_sizes()
    counts = [count for count in groups if largest is None or count <= largest]
    return rng.choices(counts, [len(groups[count]) for count in counts])[0]
