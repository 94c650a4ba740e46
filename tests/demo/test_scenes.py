"""Drawing: the same seed gives the same pixels, and the truth about a scene is what the pixels show."""

import math

import numpy as np
import pytest

from demo.evaluate import held_out_cases
from demo.pictures import PICTURES
from demo.scenes import COLOURS, MAX_SHAPES, PLACES, SHAPES, Scene, compressed, draw_crowd, draw_scene
from demo.seeds import Split, stream
from demo.sight import UNSURE, Fact, cell_truth
from demo.sizes import held_out, media_tokens, random_size, random_token_count, training_sizes
from demo.skills import SKILLS, scene_chat


def scenes(count: int, split: Split = Split.TRAIN) -> list[Scene]:
    """Scenes as the recipe draws them."""
    drawn = []
    for index in range(count):
        rng = stream(split, 7, "test", index)
        drawn.append(draw_scene(rng, *random_size(rng, split)))
    return drawn


def test_a_seed_draws_the_same_pixels_again() -> None:
    """Two drawings from one seed are equal in every byte; another seed gives another drawing."""
    first, again = scenes(6), scenes(6)
    assert [scene.image.tobytes() for scene in first] == [scene.image.tobytes() for scene in again]
    assert len({scene.image.tobytes() for scene in first}) == 6


def test_a_shape_has_its_colour_at_its_centre() -> None:
    """The pixels inside each shape are of the shape's own colour, give or take blur."""
    for scene in scenes(40):
        pixels = np.asarray(scene.image, np.float32)
        assert pixels.shape == (scene.height, scene.width, 3)
        for shape in scene.shapes:
            assert shape.colour in COLOURS
            assert shape.kind in SHAPES
            assert math.dist(pixels[int(shape.y), int(shape.x)], shape.rgb) < 12, shape


def test_shapes_are_apart_and_in_reading_order() -> None:
    """No two shapes overlap; they are listed by row of places, then left to right."""
    rows = ("top", "middle", "bottom")
    for scene in scenes(60):
        assert 1 <= len(scene.shapes) <= MAX_SHAPES
        for index, shape in enumerate(scene.shapes):
            for other in scene.shapes[index + 1 :]:
                assert math.hypot(shape.x - other.x, shape.y - other.y) > shape.radius + other.radius
        keys = []
        for shape in scene.shapes:
            place = scene.place(shape).split()[0]
            keys.append((rows.index(place) if place in rows else 1, shape.x))
        assert keys == sorted(keys)


def test_cells_hold_what_is_drawn_there() -> None:
    """Each shape has one cell with its centre, and that cell names its colour and kind unless a neighbour is near."""
    for scene in scenes(40):
        rows, columns = 4, 6
        cells = cell_truth(scene, 2 * rows, 2 * columns).reshape(rows, columns, len(Fact))
        centres = {(int(shape.y / scene.height * rows), int(shape.x / scene.width * columns)) for shape in scene.shapes}
        assert set(zip(*np.nonzero(cells[..., Fact.CENTRE]), strict=True)) == centres
        if len(centres) == len(scene.shapes):
            for shape in scene.shapes:
                cell = cells[int(shape.y / scene.height * rows), int(shape.x / scene.width * columns)]
                assert cell[Fact.COLOUR] == 1 + COLOURS.index(shape.colour)
                assert cell[Fact.KIND] == 1 + SHAPES.index(shape.kind)
                assert sum(PLACES, ())[cell[Fact.PLACE]] == scene.place(shape)
                assert scene.shapes[cell[Fact.ORDER]] is shape
                assert cell[Fact.SHAPES] == len(scene.shapes) - 1
                assert cell[Fact.SAME_KIND] == sum(other.kind == shape.kind for other in scene.shapes) - 1
                assert cell[Fact.SAME_COLOUR] == sum(other.colour == shape.colour for other in scene.shapes) - 1


def test_of_a_crowd_only_shapes_are_told() -> None:
    """None lies over another; where there are more than in a scene, nothing is said of places and numbers."""
    crowds = [draw_crowd(stream(Split.TRAIN, 7, "crowd", index), 240, 160) for index in range(20)]
    large = [crowd for crowd in crowds if len(crowd.shapes) > MAX_SHAPES]
    assert len(large) > len(crowds) / 2
    for crowd in large:
        for position, shape in enumerate(crowd.shapes):
            for other in crowd.shapes[position + 1 :]:
                assert math.hypot(shape.x - other.x, shape.y - other.y) > shape.radius + other.radius
        cells = cell_truth(crowd, 10, 12)
        assert (cells[:, Fact.CENTRE] == 1).sum() > MAX_SHAPES / 2
        assert (cells[:, Fact.PLACE :] == UNSURE).all()


def test_what_jpeg_does_is_seen_and_small() -> None:
    """The picture has its size, other pixels, and no colour that is far off in the middle of a shape."""
    for scene in scenes(5):
        photo = compressed(scene.image, 80)
        assert photo.size == scene.image.size
        assert photo.tobytes() != scene.image.tobytes()
        for shape in scene.shapes:
            if shape.radius > 12:
                assert math.dist(photo.getpixel((int(shape.x), int(shape.y))), shape.rgb) < 40


def test_all_words_occur() -> None:
    """Every colour, every shape and every number of shapes is drawn."""
    drawn = scenes(250)
    assert {shape.colour for scene in drawn for shape in scene.shapes} == set(COLOURS)
    assert {shape.kind for scene in drawn for shape in scene.shapes} == set(SHAPES)
    assert {len(scene.shapes) for scene in drawn} == {1, 2, 3, 4}


def test_sizes_of_a_group_take_the_same_number_of_tokens() -> None:
    """A batch's sizes differ in shape but not in tokens, and none of them is held out."""
    tokens = random_token_count(stream(Split.TRAIN, 0))
    sizes = training_sizes(tokens)
    assert {media_tokens(size) for size in sizes} == {tokens}
    assert not any(map(held_out, sizes))


@pytest.mark.parametrize("name", list(SKILLS))
def test_held_out_questions_are_never_trained_on(name: str) -> None:
    """Held-out cases share no picture, size or phrasing with training; asking for more keeps the first ones."""
    cases = held_out_cases(name, 20)
    assert [case.question for case in cases[:5]] == [case.question for case in held_out_cases(name, 5)]
    trained = set()
    for index in range(60):
        rng = stream(Split.TRAIN, 0, "test", index)
        example = SKILLS[name].example(rng, Split.TRAIN, [random_size(rng, Split.TRAIN)])
        trained.update(image.tobytes() for image in example.images)
    for case in cases:
        assert all(held_out(image.size) and image.tobytes() not in trained for image in case.images)
        assert case.right(case.expected)
        assert not case.right("I do not know.")


def test_a_chat_asks_different_things_about_one_scene() -> None:
    """Turns of one chat share the picture and differ in their answers."""
    for index in range(20):
        chat = scene_chat(stream(Split.TRAIN, 1, index), Split.TRAIN, [(200, 150)], turns=3)
        answers = [turn.answer for turn in chat.turns]
        assert len(chat.images) == 1
        assert answers
        assert len(set(answers)) == len(answers)


def test_describing_is_judged_by_what_is_named() -> None:
    """Any order is right; a shape missing, doubled, miscoloured or outside a sentence is not."""
    right = SKILLS["describe"].right
    expected = "A red circle, a blue square and an orange star."
    assert right(expected, expected)
    assert right(expected, "A blue square, an orange star and a red circle.")
    assert not right(expected, "A red circle and a blue square.")
    assert not right(expected, "A red circle, a red circle, a blue square and an orange star.")
    assert not right(expected, "A red circle, a green square and an orange star.")
    assert not right(expected, "red circle blue square orange star")


def test_example_pictures_have_the_answers_they_claim() -> None:
    """Each example picture shows its shapes, coloured so, and no two pictures are alike."""
    for picture in PICTURES:
        image = picture.draw()
        assert image.size == picture.size
        assert image.tobytes() == picture.draw().tobytes()
        for _, _, x, y, _ in picture.shapes:
            assert image.getpixel((round(x), round(y))) != picture.background
    assert len({picture.draw().tobytes() for picture in PICTURES}) == len(PICTURES)
