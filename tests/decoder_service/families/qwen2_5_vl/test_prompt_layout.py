"""What stands in a prompt for media, and at which positions, as transformers has it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Qwen2_5_VLConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel

from decoder_service.chat import Layout, MediaKind, Medium
from decoder_service.families.qwen2_5_vl.prompt_layout import Qwen25VL, time_steps
from serving.bundle import TokenIds
from serving.media import media_digest

IMAGE, VIDEO = 7, 8
TOKENS = TokenIds(image=IMAGE, video=VIDEO, vision_start=5, vision_end=6, eos=(0,))
FAMILY = Qwen25VL(TOKENS, merge_size=2, tokens_per_second=2)


def medium(kind: MediaKind, grid: tuple[int, int, int], seconds: float = 1.0, tokens: int | None = None) -> Layout:
    """A medium of that layout."""
    t, h, w = grid
    times = tuple(index * seconds for index in range(t)) if kind is MediaKind.VIDEO else ()
    return Layout(Medium(kind, media_digest(b"x")), grid, t * h * w // 4 if tokens is None else tokens, times)


def encode(text: str) -> list[int]:
    """Nothing is inserted."""
    raise AssertionError(text)


def test_a_video_is_one_run() -> None:
    """No text stands in it, and what the positions depend on is in its span and in its key."""
    prompt = FAMILY.lay_out([1, VIDEO, 1], [medium(MediaKind.VIDEO, (2, 2, 4), 1.0)], encode, ["v"])
    assert prompt.token_ids == (1, VIDEO, VIDEO, VIDEO, VIDEO, 1)
    assert prompt.engine_token_ids.tolist() == [1, IMAGE, IMAGE, IMAGE, IMAGE, 1]
    (span,) = prompt.media
    assert (span.start, span.stop, span.shape) == (1, 5, (1, 2, 0, 2))
    assert prompt.positions.tolist() == [[0, 1, 1, 3, 3, 3, 4], [0, 1, 1, 1, 1, 3, 4], [0, 1, 2, 1, 2, 3, 4]]
    assert FAMILY.length(medium(MediaKind.VIDEO, (2, 2, 4)), encode) == 4
    (slower,) = FAMILY.lay_out([VIDEO], [medium(MediaKind.VIDEO, (2, 2, 4), 2.0)], encode, ["v"]).media
    assert slower.shape != span.shape


def test_another_engine_gets_images_and_no_videos() -> None:
    """onnxruntime-genai computes positions itself: with a video others than these."""
    image, video = medium(MediaKind.IMAGE, (1, 4, 6)), medium(MediaKind.VIDEO, (2, 2, 4))
    inputs = FAMILY.lay_out([IMAGE], [image], encode).inputs
    assert inputs is not None
    assert (inputs["image_grid_thw"].tolist(), inputs["num_image_tokens"].tolist()) == ([[1, 4, 6]], [6])
    assert FAMILY.lay_out([IMAGE, VIDEO], [image, video], encode).inputs is None


@settings(deadline=None)
@given(
    media=st.lists(
        st.tuples(
            st.integers(1, 9),
            st.tuples(st.integers(1, 6), st.integers(1, 6)),
            st.one_of(st.none(), st.tuples(st.integers(1, 9), st.floats(0.01, 30.0))),
        ),
        min_size=1,
        max_size=4,
    ),
    rate=st.sampled_from([1, 2, 4, 25, 41]),
    tail=st.integers(1, 9),
)
def test_positions_of_any_layout(
    media: list[tuple[int, tuple[int, int], tuple[int, float] | None]], rate: int, tail: int
) -> None:
    """Any order of texts, images and videos of any length and rate has the positions that transformers gives it."""
    config = Qwen2_5_VLConfig(image_token_id=IMAGE, video_token_id=VIDEO)
    config.vision_config.tokens_per_second = rate  # type: ignore[union-attr]  # it is a config
    model = object.__new__(Qwen2_5_VLModel)
    object.__setattr__(model, "config", config)
    ids: list[int] = []
    layouts: list[Layout] = []
    for text, (rows, columns), video in media:
        frames, seconds = video or (1, 0.0)
        kind = MediaKind.IMAGE if video is None else MediaKind.VIDEO
        ids += [1] * text + [IMAGE if video is None else VIDEO]
        layouts.append(medium(kind, (frames, 2 * rows, 2 * columns), seconds))
    ids += [1] * tail
    prompt = Qwen25VL(TOKENS, merge_size=2, tokens_per_second=rate).lay_out(ids, layouts, encode)
    given = torch.tensor([prompt.token_ids])
    images = [layout.grid for layout in layouts if layout.medium.kind is MediaKind.IMAGE]
    videos = [layout for layout in layouts if layout.medium.kind is MediaKind.VIDEO]
    # As the processor gives them: float32.
    seconds_of = torch.tensor([layout.timestamps[1] if len(layout.timestamps) > 1 else 0.0 for layout in videos])
    # transformers tells media apart by text between them.
    expected, _ = model.get_rope_index(
        given,
        (given == IMAGE).int() + 2 * (given == VIDEO).int(),
        image_grid_thw=torch.tensor(images) if images else None,
        video_grid_thw=torch.tensor([layout.grid for layout in videos]) if videos else None,
        second_per_grid_ts=seconds_of if videos else None,
    )
    np.testing.assert_array_equal(prompt.positions[:, :-1], expected[:, 0].numpy())
    assert (prompt.positions[:, -1] == prompt.positions[0, -2] + 1).all()


def test_steps_depend_on_the_rate() -> None:
    """Negative control: at another rate a video has other positions; fractions are cut off at each patch."""
    assert time_steps(4, 0.75, 2) == (0, 1, 3, 4)
    assert time_steps(4, 0.75, 1) == (0, 0, 1, 2)


@pytest.mark.parametrize(
    ("token", "layout"),
    [
        (IMAGE, medium(MediaKind.IMAGE, (1, 4, 2), tokens=1)),  # a row too few
        (IMAGE, medium(MediaKind.IMAGE, (1, 0, 2))),  # nothing
        (VIDEO, Layout(Medium(MediaKind.VIDEO, ""), (2, 2, 2), 2, (0.0,))),  # a time too few
        (1, medium(MediaKind.IMAGE, (1, 2, 2))),  # a layout too many
    ],
)
def test_what_does_not_fit_is_refused(token: int, layout: Layout) -> None:
    """Layouts that do not agree with themselves or with the prompt are an error, not a prompt of something else."""
    with pytest.raises(ValueError, match=r"grid|layouts|times"):
        FAMILY.lay_out([1, token], [layout], encode)
