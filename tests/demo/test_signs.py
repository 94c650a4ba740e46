"""Signs: what is printed can be read off the pixels, and the held-out split has words and fonts of its own."""

import itertools

import numpy as np
import pytest
from PIL import Image, ImageFont, features

from demo import fonts
from demo.config import LONGEST_EDGE, PATCH_SIZE, SHORTEST_EDGE
from demo.scenes import contrast
from demo.seeds import Split, stream
from demo.signs import LETTERS, MAX_LETTERS, WORDS, Sign, _board, _stretched, draw_page, draw_sign, pick_text
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
def test_letters_stand_in_the_picture_from_left_to_right(split: Split) -> None:
    """One to six letters on one line inside the picture, as wide on average as a patch of the encoder or wider."""
    for sign in signs(80, split):
        (word,) = sign.words
        assert 1 <= len(word) <= MAX_LETTERS
        assert set(sign.text) <= set(LETTERS)
        assert all(0 <= letter.x <= sign.width and 0 <= letter.y <= sign.height for letter in word)
        assert len({letter.y for letter in word}) == 1
        assert all(left.x < right.x for left, right in itertools.pairwise(word))
        area = sign.width * sign.height
        enlarged = (min(max(area, SHORTEST_EDGE), LONGEST_EDGE) / area) ** 0.5
        assert np.mean([letter.width for letter in word]) * enlarged > PATCH_SIZE


def test_letters_are_where_they_are_said_to_be() -> None:
    """Around a letter there is more contrast than a background has."""
    for sign in signs(40):
        pixels = np.asarray(sign.image, np.float32)
        assert pixels.shape == (sign.height, sign.width, 3)
        for letter in sign.words[0]:
            left, top = letter.x - letter.width / 2, letter.y - letter.height / 2
            around = pixels[max(0, int(top)) : int(top + letter.height), max(0, int(left)) : int(left + letter.width)]
            assert np.ptp(around, axis=(0, 1)).max() > 40, sign.text


def test_words_are_printed_on_boards_with_and_without_a_border() -> None:
    """A board covers the word and keeps its ink apart from what is under it; some have a line around them."""
    bordered = 0
    for index in range(60):
        rng = stream(Split.TRAIN, 8, "board", index)
        image = Image.new("RGB", (160, 120), (200, 200, 200))
        samples, ink = _board(rng, image, (60, 50, 100, 70), [(200, 200, 200)])
        assert contrast(ink, samples) >= 100
        under = {image.getpixel((x, y)) for x in range(60, 101) for y in range(50, 71)}
        assert under == set(samples)
        bordered += len(image.getcolors() or ()) > 1 + (samples != [(200, 200, 200)])
    assert 15 < bordered < 60


def test_a_stretched_sign_keeps_its_letters_in_place() -> None:
    """Made narrower or wider, letters and pixels move alike."""
    for sign in signs(10):
        wider = _stretched(sign, 2 * sign.width)
        assert wider.image.size == (2 * sign.width, sign.height)
        assert [letter.x for letter in wider.words[0]] == [2 * letter.x for letter in sign.words[0]]
        assert [letter.height for letter in wider.words[0]] == [letter.height for letter in sign.words[0]]
        assert wider.text == sign.text


def test_a_page_holds_many_words() -> None:
    """Lines of words, each letter to the right of the one before."""
    letters = 0
    for index in range(20):
        rng = stream(Split.TRAIN, 7, "page", index)
        page = draw_page(rng, Split.TRAIN, *random_size(rng, Split.TRAIN))
        letters += sum(map(len, page.words))
        assert all(left.x < right.x for word in page.words for left, right in itertools.pairwise(word))
    assert letters > 300


def test_held_out_words_and_fonts_are_not_trained_on() -> None:
    """The splits' texts have hardly any longer word in common, and no font family."""
    words = {split: {pick_text(stream(split, 3, index), split).upper() for index in range(3000)} for split in Split}
    common = words[Split.TRAIN] & words[Split.HELD_OUT]
    # By chance, some made-up words and numbers of four characters are drawn twice.
    assert all(len(word) <= 4 for word in common), sorted(common, key=len)[-5:]
    assert all(set(WORDS[split]) <= words[split] for split in Split)
    assert not set(WORDS[Split.TRAIN]) & set(WORDS[Split.HELD_OUT])
    families = {split: {font for names in fonts.FAMILIES[split].values() for font in names} for split in Split}
    assert not families[Split.TRAIN] & families[Split.HELD_OUT]
    for split in Split:
        for package, name in fonts._FILES[split]:
            assert fonts._load(package, name, 20, None).getlength("word") > 0
    names = {
        split: {fonts.pick_font(stream(split, 4, index), split, 20).getname()[0] for index in range(200)}
        for split in Split
    }
    assert not names[Split.TRAIN] & names[Split.HELD_OUT]
    assert len(names[Split.TRAIN]) >= 6


def test_held_out_words_are_set_as_those_of_people_are() -> None:
    """Words to learn from are set by the quicker engine, held-out ones by the one that Pillow takes unless told."""
    engines = {
        split: {fonts.pick_font(stream(split, 4, index), split, 20).layout_engine for index in range(50)}
        for split in Split
    }
    assert engines[Split.TRAIN] == {ImageFont.Layout.BASIC}
    usual = ImageFont.Layout.RAQM if features.check("raqm") else ImageFont.Layout.BASIC
    assert engines[Split.HELD_OUT] == {usual}
