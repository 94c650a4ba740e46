"""Signs: what is printed shows in the pixels, and the held-out split has fonts of its own."""

import numpy as np
import pytest

from demo import fonts
from demo.seeds import Split, stream
from demo.sight import UNSURE, Fact, cell_truth
from demo.signs import Sign, draw_sign
from demo.sizes import random_size


def signs(count: int, split: Split = Split.TRAIN) -> list[Sign]:
    """Signs as the recipe draws them."""
    drawn = []
    for index in range(count):
        rng = stream(split, 7, "sign", index)
        drawn.append(draw_sign(rng, split, *random_size(rng, split)))
    return drawn


def test_a_seed_prints_the_same_pixels_again() -> None:
    """Two drawings from one seed are equal in every byte."""
    assert [sign.image.tobytes() for sign in signs(5)] == [sign.image.tobytes() for sign in signs(5)]


@pytest.mark.parametrize("split", list(Split))
def test_something_is_printed(split: Split) -> None:
    """Two to eight letters or digits, of more contrast than a background has."""
    for sign in signs(40, split):
        assert 2 <= len(sign.text) <= 8
        assert sign.text.isalnum()
        pixels = np.asarray(sign.image, np.float32)
        assert pixels.shape == (sign.height, sign.width, 3)
        assert np.abs(np.diff(pixels, axis=1)).max() > 30


def test_the_splits_share_no_font() -> None:
    """Held-out fonts are never trained on, and every font has its file."""
    assert not {*fonts._TRAIN} & {*fonts._HELD_OUT}
    for name in (*fonts._TRAIN, *fonts._HELD_OUT):
        assert fonts._load(name, 20).getlength("word") > 0


def test_there_are_no_shapes_on_a_sign() -> None:
    """Its cells hold nothing, and nothing is said of places and numbers."""
    for sign in signs(5):
        cells = cell_truth(sign, 8, 10)
        assert (cells[:, [Fact.CENTRE, Fact.COLOUR, Fact.KIND]] == 0).all()
        assert (cells[:, Fact.PLACE :] == UNSURE).all()
