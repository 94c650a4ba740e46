"""What stands in a prompt for media, as transformers writes it, and where it stands."""

from __future__ import annotations

import re

import pytest

from decoder_service.chat import Layout, MediaKind, Medium
from decoder_service.engine import Span
from decoder_service.families.qwen3_vl.prompt_layout import Qwen3VL
from decoder_service.request.prompt import PromptBuilder
from serving.bundle import Bundle, TokenIds
from serving.media import media_digest
from tests.decoder_service.cases import TURNS, Case

IMAGE, VIDEO, START, END = 7, 8, 5, 6
FAMILY = Qwen3VL(TokenIds(image=IMAGE, video=VIDEO, vision_start=START, vision_end=END, eos=(0,)), merge_size=2)


def medium(kind: MediaKind, grid: tuple[int, int, int], tokens: int, times: tuple[float, ...] = ()) -> Layout:
    """A medium of that layout."""
    return Layout(Medium(kind, media_digest(b"x")), grid, tokens, times)


def encode(text: str) -> list[int]:
    """Two tokens, whatever the text."""
    return [101, 102]


@pytest.mark.parametrize("name", TURNS)
def test_engine_sees_frames_as_images(
    prompts: PromptBuilder, bundle: Bundle, cases: dict[str, Case], name: str
) -> None:
    """The engine's ids have image tokens for all media; each run of them has one grid and one span."""
    case = cases[name]
    prompt = prompts.expand(prompts.render(case.messages), case.layouts)
    image = bundle.media_tokens.image
    media = {image, bundle.media_tokens.video}
    expected = [image if token in media else token for token in prompt.token_ids]
    assert prompt.engine_token_ids.tolist() == expected
    grids = prompt.inputs["image_grid_thw"].tolist()
    rows = [t * h * w // bundle.vision.spatial_merge_size**2 for t, h, w in grids]
    assert sum(rows) == prompt.media_tokens == prompt.inputs["num_image_tokens"] == expected.count(image)
    assert all(t == 1 for t, _, _ in grids)
    runs = [run.span() for run in re.finditer("i+", "".join("i" if i == image else " " for i in expected))]
    assert [stop - start for start, stop in runs] == rows
    assert [(span.start, span.stop) for span in prompt.media] == runs


def test_media_are_told_apart_without_a_gap() -> None:
    """Two media that touch are two spans, each with its key; without keys nobody knows what they are."""
    layouts = [medium(MediaKind.IMAGE, (1, 2, 4), 2), medium(MediaKind.IMAGE, (1, 4, 4), 4)]
    prompt = FAMILY.lay_out([1, IMAGE, IMAGE, 1], layouts, encode, ["a", "b"])
    assert prompt.engine_token_ids.tolist() == [1, *[IMAGE] * 6, 1]
    assert prompt.media == (Span(1, 3, (1, 2), "a:2x4:0"), Span(3, 7, (2, 2), "b:4x4:0"))
    assert {span.key for span in FAMILY.lay_out([1, IMAGE, IMAGE, 1], layouts, encode).media} == {""}


def test_each_frame_of_a_video_is_a_medium() -> None:
    """After its time, between its marks, and with a key of its own."""
    prompt = FAMILY.lay_out([VIDEO], [medium(MediaKind.VIDEO, (2, 2, 4), 4, (0.5, 1.5))], encode, ["v"])
    assert prompt.token_ids == (101, 102, START, VIDEO, VIDEO, END) * 2
    assert prompt.engine_token_ids.tolist() == [101, 102, START, IMAGE, IMAGE, END] * 2
    assert prompt.media == (Span(3, 5, (1, 2), "v:2x4:0"), Span(9, 11, (1, 2), "v:2x4:1"))


def test_a_medium_that_comes_twice_has_the_same_names_twice() -> None:
    """One name for an image and one for each frame, from the medium's own."""
    image, video = (
        medium(MediaKind.IMAGE, (1, 4, 6), 6),
        medium(MediaKind.VIDEO, (3, 4, 6), 18, (0.5, 1.5, 2.5)),
    )
    prompt = FAMILY.lay_out([IMAGE, VIDEO, IMAGE], [image, video, image], encode, ["i", "v", "i"])
    keys = [span.key for span in prompt.media]
    assert len(keys) == 5
    assert keys[0] == keys[4]
    assert len(set(keys)) == 4
    (other,) = FAMILY.lay_out([IMAGE], [image], encode, ["j"]).media
    assert other.key not in keys


@pytest.mark.parametrize(
    ("token", "layout", "keys"),
    [
        (IMAGE, medium(MediaKind.IMAGE, (1, 4, 2), 1), ()),  # a row too few
        (IMAGE, medium(MediaKind.IMAGE, (1, 4, 2), 3), ()),  # a row too many
        (IMAGE, medium(MediaKind.IMAGE, (2, 2, 2), 2), ()),  # two frames in one image
        (IMAGE, medium(MediaKind.IMAGE, (1, 0, 2), 0), ()),  # nothing
        (VIDEO, medium(MediaKind.VIDEO, (2, 2, 2), 2, (0.0,)), ()),  # a time too few
        (IMAGE, medium(MediaKind.IMAGE, (1, 2, 2), 1), ("a", "b")),  # a key too many
        (1, medium(MediaKind.IMAGE, (1, 2, 2), 1), ()),  # a layout too many
    ],
)
def test_what_does_not_fit_is_refused(token: int, layout: Layout, keys: tuple[str, ...]) -> None:
    """Layouts that do not agree with themselves or with the prompt are an error, not a prompt of something else."""
    with pytest.raises(ValueError, match=r"grid|layouts"):
        FAMILY.lay_out([1, token], [layout], encode, keys)
