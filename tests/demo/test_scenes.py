"""Drawing: the same seed gives the same pixels, and the truth about a scene is what the pixels show."""

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import demo.scenes
from demo.pictures import PICTURES
from demo.scenes import (
    COLOURS,
    MAX_SHAPES,
    SHAPES,
    Scene,
    compressed,
    draw_background,
    draw_crowd,
    draw_scene,
    draw_shape,
    pick_rim,
    pick_shape,
    redraw,
)
from demo.seeds import Split, stream
from demo.sizes import held_out, media_tokens, random_size, random_token_count, training_sizes


def scenes(count: int, split: Split = Split.TRAIN, *, alike: bool = False) -> list[Scene]:
    """Scenes as the recipe draws them."""
    drawn = []
    for index in range(count):
        rng = stream(split, 7, "test", index)
        drawn.append(draw_scene(rng, *random_size(rng, split), alike=alike))
    return drawn


def test_a_seed_draws_the_same_pixels_again() -> None:
    """Two drawings from one seed are equal in every byte; another seed gives another drawing."""
    first, again = scenes(6), scenes(6)
    assert [scene.image.tobytes() for scene in first] == [scene.image.tobytes() for scene in again]
    assert len({scene.image.tobytes() for scene in first}) == 6


def test_a_shape_has_its_colour_at_its_centre(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pixels inside each shape are of the shape's own colour, give or take blur."""
    monkeypatch.setattr(demo.scenes, "as_photo", lambda rng, image: image)
    for scene in scenes(40) + scenes(40, alike=True):
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


def test_of_a_crowd_none_lies_over_another() -> None:
    """Most crowds have more shapes than a scene."""
    crowds = [draw_crowd(stream(Split.TRAIN, 7, "crowd", index), 240, 160) for index in range(20)]
    large = [crowd for crowd in crowds if len(crowd.shapes) > MAX_SHAPES]
    assert len(large) > len(crowds) / 2
    for crowd in large:
        for position, shape in enumerate(crowd.shapes):
            for other in crowd.shapes[position + 1 :]:
                assert math.hypot(shape.x - other.x, shape.y - other.y) > shape.radius + other.radius


def test_alike_scenes_hold_several_of_a_kind_and_of_a_colour() -> None:
    """More often than others do."""

    def repeated(drawn: list[Scene], word: str) -> int:
        words = [[getattr(shape, word) for shape in scene.shapes] for scene in drawn]
        return sum(len(set(some)) < len(some) for some in words)

    for word in ("kind", "colour"):
        assert repeated(scenes(100, alike=True), word) > 1.25 * repeated(scenes(100), word)


def test_what_jpeg_does_is_seen_and_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The picture has its size, other pixels, and no colour that is far off in the middle of a shape."""
    monkeypatch.setattr(demo.scenes, "as_photo", lambda rng, image: image)
    for scene in scenes(5):
        photo = compressed(scene.image, 80)
        assert photo.size == scene.image.size
        assert photo.tobytes() != scene.image.tobytes()
        for shape in scene.shapes:
            if shape.radius > 12:
                assert math.dist(photo.getpixel((int(shape.x), int(shape.y))), shape.rgb) < 40


def test_a_scene_drawn_anew_shows_the_same_unless_it_is_changed() -> None:
    """Redrawn in another size, the shapes stay where and what they are; changed, one is another or gone, or two are."""
    for index, scene in enumerate(scenes(40)):
        rng = stream(Split.TRAIN, 8, index)
        same = redraw(rng, scene, 2 * scene.width, 2 * scene.height)
        assert same.image.size == (2 * scene.width, 2 * scene.height)
        assert [shape.name for shape in same.shapes] == [shape.name for shape in scene.shapes]
        assert [same.place(shape) for shape in same.shapes] == [scene.place(shape) for shape in scene.shapes]
        other = redraw(rng, scene, scene.width, scene.height, change=True)
        lost = Counter(shape.name for shape in scene.shapes) - Counter(shape.name for shape in other.shapes)
        assert 1 <= lost.total() <= 2
        assert other.shapes
        if lost.total() == 2:  # colours exchanged
            assert Counter(shape.kind for shape in scene.shapes) == Counter(shape.kind for shape in other.shapes)
            assert Counter(shape.colour for shape in scene.shapes) == Counter(shape.colour for shape in other.shapes)


def test_a_rim_can_be_told_from_what_it_surrounds() -> None:
    """It is drawn around the shape, whose middle keeps its colour, and is never of nearly that colour."""
    for index in range(200):
        rng = stream(Split.TRAIN, 9, index)
        shape = pick_shape(rng, (40, 40, 30), [(120, 120, 120)])
        rim = pick_rim(rng)
        if rim is None:
            continue
        image = Image.new("RGB", (80, 80), (120, 120, 120))
        draw_shape(image, replace(shape, turn=0.0), smooth=False, rim=rim)
        beside = rim.beside(shape.rgb)
        assert math.dist(beside, shape.rgb) > 60
        assert image.getpixel((40, 40)) == shape.rgb
        assert beside in {colour for _, colour in image.getcolors() or ()}


def test_scenes_are_drawn_as_differently_as_people_draw_them() -> None:
    """Shapes take a fifth to two thirds of the short side, some have rims, half of the backgrounds are not plain."""
    drawn = scenes(300)
    shares = [2 * shape.radius / min(scene.width, scene.height) for scene in drawn for shape in scene.shapes]
    assert min(shares) < 0.22
    assert max(shares) > 0.6
    rims = [pick_rim(stream(Split.TRAIN, 10, index)) for index in range(200)]
    assert 30 < sum(rim is not None for rim in rims) < 90
    plain = 0
    for index in range(100):
        image, samples = draw_background(stream(Split.TRAIN, 11, index), 120, 90)
        assert samples
        plain += len(image.getcolors(120 * 90) or ()) == 1
    assert 20 < plain < 60


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


def test_example_pictures_show_what_they_claim() -> None:
    """Each example picture shows its shapes, coloured so, and no two pictures are alike."""
    for picture in PICTURES:
        image = picture.draw()
        assert image.size == picture.size
        assert image.tobytes() == picture.draw().tobytes()
        for _, _, x, y, _ in picture.shapes:
            assert image.getpixel((round(x), round(y))) != picture.background
    assert len({picture.draw().tobytes() for picture in PICTURES}) == len(PICTURES)
