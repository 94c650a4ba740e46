"""Sight: what is stated about the cells of a picture is what was drawn there."""

from demo.scenes import MAX_SHAPES, draw_crowd, draw_scene
from demo.seeds import Split, stream
from demo.sight import UNSURE, Fact, cell_truth
from demo.signs import LETTERS, Sign, draw_page, draw_sign
from demo.sizes import random_size

PATCHES = [Fact.UPPER_LEFT, Fact.UPPER_RIGHT, Fact.LOWER_LEFT, Fact.LOWER_RIGHT]


def sign(index: int) -> Sign:
    """A sign as the recipe draws it."""
    rng = stream(Split.TRAIN, 11, index)
    return draw_sign(rng, Split.TRAIN, *random_size(rng, Split.TRAIN))


def test_read_cell_by_cell_the_letters_are_the_word() -> None:
    """From left to right, each cell's first letter is the next of the word, as its index says."""
    for index in range(60):
        view = sign(index)
        rows, columns = 6, 14  # so that hardly a cell holds the middles of three letters
        cells = cell_truth(view, 2 * rows, 2 * columns).reshape(rows, columns, len(Fact))
        read = ""
        for cell in cells[cells[..., Fact.FIRST_LETTER] > 0]:
            assert cell[Fact.INDEX] == len(read)
            assert cell[Fact.LENGTH] == len(view.text) - 1
            read += "".join(LETTERS[label - 1] for label in cell[[Fact.FIRST_LETTER, Fact.SECOND_LETTER]] if label > 0)
        assert read == view.text


def test_a_patch_states_the_letter_that_covers_it() -> None:
    """Where a letter covers a patch's middle the patch states it, unless the border of the page cuts the letter."""
    told = 0
    for index in range(20):
        rng = stream(Split.TRAIN, 12, index)
        page = draw_page(rng, Split.TRAIN, *random_size(rng, Split.TRAIN))
        rows, columns = 20, 20
        cells = cell_truth(page, rows, columns).reshape(rows // 2, columns // 2, len(Fact))
        height, width = page.height / rows, page.width / columns
        for letter in (letter for word in page.words for letter in word):
            row, column = int(letter.y // height), int(letter.x // width)
            if not (0 <= row < rows and 0 <= column < columns):
                continue
            off_x, off_y = abs((column + 0.5) * width - letter.x), abs((row + 0.5) * height - letter.y)
            if off_x < 0.49 * letter.width and off_y < 0.49 * letter.height:
                label = cells[row // 2, column // 2, PATCHES[2 * (row % 2) + column % 2]]
                assert label in (1 + LETTERS.index(letter.letter), UNSURE)
                told += label != UNSURE
    assert told > 200


def test_a_sign_has_no_shapes_and_a_scene_no_letters() -> None:
    """Each states that what the other holds is not there, and nothing of places and numbers or of words."""
    for index in range(5):
        cells = cell_truth(sign(index), 8, 10)
        assert (cells[:, [Fact.CENTRE, Fact.COLOUR, Fact.KIND]] == 0).all()
        assert (cells[:, Fact.PLACE : Fact.FIRST_LETTER] == UNSURE).all()
        rng = stream(Split.TRAIN, 13, index)
        for scene in (draw_scene(rng, 200, 160), draw_crowd(rng, 200, 160)):
            cells = cell_truth(scene, 8, 10)
            assert (cells[:, [Fact.FIRST_LETTER, Fact.SECOND_LETTER, *PATCHES]] == 0).all()
            assert (cells[:, [Fact.INDEX, Fact.LENGTH]] == UNSURE).all()
            assert ((cells[:, Fact.PLACE] != UNSURE).sum() == len(scene.shapes)) == (len(scene.shapes) <= MAX_SHAPES)
