"""Clips: what is said to happen happens on the pixels, also in the encoded file."""

import io
import math
from itertools import pairwise

import av
import numpy as np
import pytest

from demo.clips import Clip, Event, draw_clip
from demo.pictures import CLIP, EXAMPLES, draw_example_clip
from demo.seeds import Split, stream
from demo.video import encode_clip


def clips(count: int) -> list[Clip]:
    """Clips as the recipe draws them."""
    return [draw_clip(stream(Split.TRAIN, 7, "clip", index), 192, 128) for index in range(count)]


def there(clip: Clip, time: float) -> bool:
    """Whether the actor's colour is where the actor would be at that time."""
    x, y = (a + (b - a) * time for a, b in zip((clip.actor.x, clip.actor.y), clip.end, strict=True))
    pixel = np.asarray(clip.frame(time), np.float32)[int(y), int(x)]
    return math.dist(pixel, clip.actor.rgb) < 40


def test_every_event_happens() -> None:
    """Over many clips all events occur, with up to two other shapes."""
    drawn = clips(80)
    assert {clip.event for clip in drawn} == set(Event)
    assert {len(clip.still) for clip in drawn} == {0, 1, 2}


def test_size_does_not_tell_who_acts() -> None:
    """Half of all clips move; where others stand by, whoever acts is about as often the largest as any of them."""
    drawn = clips(300)
    assert 120 < sum(clip.event.is_motion for clip in drawn) < 180
    for moves in (True, False):
        beside = [clip for clip in drawn if clip.still and clip.event.is_motion is moves]
        largest = sum(clip.actor.radius > max(shape.radius for shape in clip.still) for clip in beside)
        assert 0.33 * len(beside) < largest < 0.55 * len(beside)


def test_the_actor_does_what_the_event_says() -> None:
    """It moves that way by a third of the picture or more, or is there at one end of the clip alone."""
    for clip in clips(60):
        right, down = clip.end[0] - clip.actor.x, clip.end[1] - clip.actor.y
        match clip.event:
            case Event.LEFT | Event.RIGHT:
                assert (right > 0) == (clip.event is Event.RIGHT)
                assert abs(right) > max(clip.width / 3.1, 2 * abs(down))
            case Event.UP | Event.DOWN:
                assert (down > 0) == (clip.event is Event.DOWN)
                assert abs(down) > max(clip.height / 3.1, 2 * abs(right))
            case _:
                assert (right, down) == (0, 0)
        assert there(clip, 0.0) == (clip.event is not Event.APPEARS)
        assert there(clip, 1.0) == (clip.event is not Event.DISAPPEARS)


def test_other_shapes_stay_out_of_the_way() -> None:
    """All have different names, and the actor touches none."""
    for clip in clips(60):
        for shape in clip.still:
            assert [other.name for other in clip.shapes(0.5)].count(shape.name) == 1
            for time in np.linspace(0, 1, 21):
                for other in clip.shapes(float(time)):
                    if other is not shape:
                        assert math.hypot(other.x - shape.x, other.y - shape.y) > shape.radius + other.radius


def test_a_clips_shapes_are_in_reading_order() -> None:
    """At any time they are told as a scene's are, whichever of them is the actor."""
    moved = set()
    for clip in clips(60):
        for time in (0.0, 0.5, 1.0):
            scene = clip.scene(time)
            rows = [int(3 * shape.y / scene.height) for shape in scene.shapes]
            assert rows == sorted(rows)
            for before, after in pairwise(scene.shapes):
                assert int(3 * before.y / scene.height) < int(3 * after.y / scene.height) or before.x <= after.x
            moved.add(scene.shapes == clip.shapes(time))
    assert moved == {True, False}


@pytest.mark.parametrize("seconds", [1.5, 3.0])
def test_the_encoded_file_shows_the_clip(seconds: float) -> None:
    """Decoded again, its first and last frames are the clip's, and it lasts as long as it should."""
    clip = clips(1)[0]
    with av.open(io.BytesIO(encode_clip(clip, seconds))) as container:
        frames = [frame.to_ndarray(format="rgb24").astype(np.float32) for frame in container.decode(video=0)]
        assert abs(len(frames) - 12 * seconds) <= 1
    for frame, time in ((frames[0], 0.0), (frames[-1], 1.0)):
        assert np.abs(frame - np.asarray(clip.frame(time), np.float32)).mean() < 6


def test_the_example_clip_is_the_one_on_disk() -> None:
    """The file in `demo/examples` shows what is drawn, from the first frame to the last."""
    drawn = draw_example_clip()
    with av.open(str(EXAMPLES / CLIP)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    for frame, time in ((frames[0], 0.0), (frames[-1], 1.0)):
        assert np.abs(frame.astype(int) - np.asarray(drawn.frame(time), int)).mean() < 4
