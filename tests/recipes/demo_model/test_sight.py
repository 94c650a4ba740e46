"""Sight: what is stated about the cells of a picture is what was drawn there."""

import numpy as np

from demo.scenes import COLOURS, MAX_SHAPES, PLACES, SHAPES, draw_crowd, draw_scene
from demo.seeds import Split, stream
from demo.signs import LETTERS, Sign, draw_page, draw_sign
from demo.sizes import random_size
from recipes.demo_model.sight import UNSURE, Fact, cell_truth

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


def test_cells_hold_what_is_drawn_there() -> None:
    """Each shape has one cell with its centre, and that cell states the shape and how it stands to the others."""
    for index in range(40):
        rng = stream(Split.TRAIN, 7, "test", index)
        scene = draw_scene(rng, *random_size(rng, Split.TRAIN))
        rows, columns = 4, 6
        cells = cell_truth(scene, 2 * rows, 2 * columns).reshape(rows, columns, len(Fact))
        centres = {(int(shape.y / scene.height * rows), int(shape.x / scene.width * columns)) for shape in scene.shapes}
        assert set(zip(*np.nonzero(cells[..., Fact.CENTRE]), strict=True)) == centres
        kinds = [shape.kind for shape in scene.shapes]
        if len(centres) == len(scene.shapes):
            for order, shape in enumerate(scene.shapes):
                cell = cells[int(shape.y / scene.height * rows), int(shape.x / scene.width * columns)]
                assert cell[Fact.COLOUR] == 1 + COLOURS.index(shape.colour)
                assert cell[Fact.KIND] == 1 + SHAPES.index(shape.kind)
                assert sum(PLACES, ())[cell[Fact.PLACE]] == scene.place(shape)
                assert cell[Fact.ORDER] == order
                assert cell[Fact.SHAPES] == len(scene.shapes) - 1
                assert cell[Fact.SAME_KIND] == kinds.count(shape.kind) - 1
                assert cell[Fact.SAME_COLOUR] == sum(other.colour == shape.colour for other in scene.shapes) - 1


def test_of_a_crowd_only_shapes_are_told() -> None:
    """Where there are more than in a scene, nothing is said of places and numbers."""
    crowds = [draw_crowd(stream(Split.TRAIN, 7, "crowd", index), 240, 160) for index in range(20)]
    large = [crowd for crowd in crowds if len(crowd.shapes) > MAX_SHAPES]
    assert len(large) > len(crowds) / 2
    for crowd in large:
        cells = cell_truth(crowd, 10, 12)
        assert (cells[:, Fact.CENTRE] == 1).sum() > MAX_SHAPES / 2
        assert (cells[:, Fact.PLACE : Fact.FIRST_LETTER] == UNSURE).all()
