"""Signs: what is printed can be read off the pixels, and the held-out split has words and fonts of its own."""

import numpy as np
import pytest

from demo import fonts
from demo.config import LONGEST_EDGE, PATCH_SIZE
from demo.seeds import Split, stream
from demo.sight import FACTS, UNSURE, cell_truth
from demo.signs import LETTERS, MAX_LETTERS, Sign, draw_page, draw_sign, pick_text
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
    """One to six letters, each inside the picture, on one line, and none of them minute."""
    for sign in signs(80, split):
        assert 1 <= len(sign.text) <= MAX_LETTERS
        assert set(sign.text) <= set(LETTERS)
        assert all(0 <= letter.x <= sign.width and 0 <= letter.y <= sign.height for letter in sign.words[0])
        assert len({letter.y for letter in sign.words[0]}) == 1
        steps = np.diff([letter.x for letter in sign.words[0]])
        shown = min(1.0, (LONGEST_EDGE / (sign.width * sign.height)) ** 0.5)
        assert (steps > 0).all()
        assert not len(steps) or steps.mean() * shown > 0.35 * PATCH_SIZE


def test_letters_are_where_they_are_said_to_be() -> None:
    """Around a letter there is more contrast than a background has."""
    for sign in signs(40):
        pixels = np.asarray(sign.image, np.float32)
        steps = np.diff([letter.x for letter in sign.words[0]])
        reach = int(steps.mean()) if len(steps) else sign.height // 3
        for letter in sign.words[0]:
            x, y = int(letter.x), int(letter.y)
            around = pixels[max(0, y - reach) : y + reach + 1, max(0, x - reach) : x + reach + 1]
            assert np.ptp(around, axis=(0, 1)).max() > 40, sign.text


def test_cells_state_the_letters_in_their_order() -> None:
    """Read cell by cell from left to right, the letters are the word, as far as three to a cell go."""
    for sign in signs(60):
        rows, columns = 4, 10
        cells = cell_truth(sign, 2 * rows, 2 * columns).reshape(rows, columns, len(FACTS))
        held = cells[cells[..., FACTS["index"]] > 0]
        read = ""
        for cell in held:
            assert cell[FACTS["index"]] == 1 + len(read)
            assert cell[FACTS["length"]] == len(sign.text) - 1
            slots = [cell[FACTS[f"letter {slot}"]] for slot in (1, 2, 3)]
            read += "".join(LETTERS[slot - 1] for slot in slots if slot > 0)
        assert read == sign.text
        assert (cells[..., FACTS["place"]] == UNSURE).all()
        assert (cells[..., FACTS["kind"]] == 0).all()


def test_a_page_holds_many_letters_and_all_are_on_it() -> None:
    """Lines of words, none of which leaves the page; cells state letters that are in them, or nothing where unsure."""
    letters = 0
    for index in range(20):
        rng = stream(Split.TRAIN, 7, "page", index)
        page = draw_page(rng, Split.TRAIN, *random_size(rng, Split.TRAIN))
        letters += sum(map(len, page.words))
        assert all(0 <= letter.x <= page.width for word in page.words for letter in word)
        rows, columns = 6, 6
        cells = cell_truth(page, 2 * rows, 2 * columns).reshape(rows, columns, len(FACTS))
        for word in page.words:
            for letter in word:
                row = min(rows - 1, int(letter.y / page.height * rows))
                column = min(columns - 1, int(letter.x / page.width * columns))
                slots = [cells[row, column, FACTS[f"letter {slot}"]] for slot in (1, 2, 3)]
                assert 1 + LETTERS.index(letter.letter) in slots or slots[0] == UNSURE or all(slots)
    assert letters > 300


def test_held_out_words_and_fonts_are_not_trained_on() -> None:
    """No dictionary word of one split is drawn in the other, and no font family is in both."""
    words = {split: {pick_text(stream(split, 3, index), split).upper() for index in range(3000)} for split in Split}
    made_up_and_digits = 0.75  # of all texts; the rest are from the dictionary
    common = words[Split.TRAIN] & words[Split.HELD_OUT]
    assert all(len(word) <= 4 for word in common), sorted(common, key=len)[-5:]
    assert len(words[Split.TRAIN]) > 3000 * made_up_and_digits * 0.5
    assert not set(fonts._TRAIN) & set(fonts._HELD_OUT)
    names = {
        split: {fonts.pick_font(stream(split, 4, index), split, 20).getname()[0] for index in range(200)}
        for split in Split
    }
    assert not names[Split.TRAIN] & names[Split.HELD_OUT]
    assert len(names[Split.TRAIN]) >= 6
