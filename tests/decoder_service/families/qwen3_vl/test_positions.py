"""M-RoPE positions: exact against transformers, for images and for every frame of a video."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from decoder_service.families.qwen3_vl.positions import Span, media_spans, mrope_positions
from decoder_service.request.prompt import PromptBuilder
from serving.bundle import Bundle
from tests.decoder_service.cases import TURNS, Case
from tests.reference import Reference

MERGE = 2
IMAGE = 7


@pytest.mark.parametrize("name", TURNS)
def test_positions_of_conversations(
    reference: Reference, prompts: PromptBuilder, bundle: Bundle, cases: dict[str, Case], name: str
) -> None:
    """The positions of whole conversations, and where the answer begins, are `get_rope_index`'s."""
    case = cases[name]
    prompt = prompts.expand(prompts.render(case.messages), case.layouts)
    ids = prompt.engine_token_ids
    spans = media_spans(
        ids, prompt.grids, (), image_token=bundle.tokens.image, merge_size=bundle.vision.spatial_merge_size
    )
    positions = mrope_positions(ids.size, spans)
    expected = reference.positions(case.inputs).numpy()
    np.testing.assert_array_equal(positions[:, :-1], expected)
    assert (positions[:, -1] == expected.max() + 1).all()


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 9), st.tuples(st.integers(1, 6), st.integers(1, 6)), st.booleans()),
        min_size=1,
        max_size=5,
    ),
    st.integers(1, 9),
)
def test_positions_of_any_layout(
    reference: Reference, media: list[tuple[int, tuple[int, int], bool]], tail: int
) -> None:
    """Any order of texts, images and frames of any shape has the positions that transformers gives it."""
    config = reference.model.config
    ids: list[int] = []
    types: list[int] = []
    grids: dict[bool, list[list[int]]] = {False: [], True: []}
    for text, (rows, columns), video in media:
        ids += [1] * (text - 1) + [config.vision_start_token_id]
        types += [0] * text
        ids += [config.video_token_id if video else config.image_token_id] * (rows * columns)
        types += [2 if video else 1] * (rows * columns)
        grids[video].append([1, rows * MERGE, columns * MERGE])
    ids += [1] * tail
    types += [0] * tail
    expected, _ = reference.model.model.get_rope_index(
        torch.tensor([ids]),
        torch.tensor([types]),
        image_grid_thw=torch.tensor(grids[False]) if grids[False] else None,
        video_grid_thw=torch.tensor(grids[True]) if grids[True] else None,
    )
    engine_ids = np.where(np.array(types) > 0, IMAGE, 1).astype(np.int32)
    shapes = np.array([[1, rows * MERGE, columns * MERGE] for _, (rows, columns), _ in media], np.int64)
    spans = media_spans(engine_ids, shapes, (), image_token=IMAGE, merge_size=MERGE)
    np.testing.assert_array_equal(mrope_positions(len(ids), spans)[:, :-1], expected[:, 0].numpy())


def test_media_are_told_apart_without_a_gap() -> None:
    """Two media that touch are two spans, each with its key."""
    ids = np.array([1, *[IMAGE] * 6, 1], np.int32)
    grids = np.array([[1, 2, 4], [1, 4, 4]], np.int64)
    spans = media_spans(ids, grids, ("a", "b"), image_token=IMAGE, merge_size=MERGE)
    assert spans == (Span(1, 3, (1, 2), "a"), Span(3, 7, (2, 2), "b"))


@pytest.mark.parametrize(
    ("ids", "grids", "keys"),
    [
        ([1, IMAGE], [[1, 4, 2]], ()),  # a row too few
        ([1, IMAGE, IMAGE, IMAGE], [[1, 4, 2]], ()),  # a row too many
        ([IMAGE, 1, IMAGE], [[1, 4, 2]], ()),  # text between rows
        ([IMAGE, IMAGE], [[2, 2, 2]], ()),  # two frames in one grid
        ([IMAGE, IMAGE], [[1, 4, 2]], ("a", "b")),  # a key too many
    ],
)
def test_what_does_not_fit_is_refused(ids: list[int], grids: list[list[int]], keys: tuple[str, ...]) -> None:
    """Rows and grids that do not agree are an error, not positions of something else."""
    with pytest.raises(ValueError, match="grid"):
        media_spans(np.array(ids, np.int32), np.array(grids, np.int64), keys, image_token=IMAGE, merge_size=MERGE)
