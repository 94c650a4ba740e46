"""The benchmark of photos: what it asks, and what it tells."""

from __future__ import annotations

import io

from PIL import Image as Pillow

from benchmarks.photo import PhotoPlan, Photos, measure
from benchmarks.report import table_of
from serving.bundle import Bundle
from tests.system import triptych_system
from triptych import Client


def test_photos_are_alike_in_size_and_in_nothing_else() -> None:
    """Each has its width and height and is another file; the same seed gives the same ones."""
    photos, again = Photos(1), Photos(1)
    made = [photos.make((320, 96)) for _ in range(3)]
    assert {Pillow.open(io.BytesIO(one)).size for one in made} == {(320, 96)}
    assert len(set(made)) == 3
    assert [again.make((320, 96)) for _ in range(3)] == made


def test_a_row_tells_what_was_used(tiny: Bundle) -> None:
    """A photo at the default and at a bound of its own: sizes, tokens and times of a system that really answers."""
    plan = PhotoPlan((((512, 256), None), ((512, 256), 64 * 64)), repeats=2)
    with triptych_system(tiny.root) as address, Client(address) as client:
        default, small = measure(client, plan)
    assert (default.given, default.used, default.tokens) == ("512 x 256", "512 x 256", 128)
    assert small.max_pixels == "4096"
    assert small.tokens <= 4
    assert 0 < default.encoding < default.first_token
    assert 0 < default.prefill < default.first_token
    assert "512 x 256" in table_of("Photos", [default, small]).text
