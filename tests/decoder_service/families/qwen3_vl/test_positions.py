"""M-RoPE positions: exact against transformers, for images and for every frame of a video."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from decoder_service.engine import Span
from decoder_service.families.qwen.positions import mrope_positions
from decoder_service.request.prompt import PromptBuilder
from tests.decoder_service.cases import TURNS, Case
from tests.reference import Reference

MERGE = 2


@pytest.mark.parametrize("name", TURNS)
def test_positions_of_conversations(
    reference: Reference, prompts: PromptBuilder, cases: dict[str, Case], name: str
) -> None:
    """The positions of whole conversations, and where the answer begins, are `get_rope_index`'s."""
    case = cases[name]
    prompt = prompts.expand(prompts.render(case.messages), case.layouts)
    expected = reference.positions(case.inputs).numpy()
    np.testing.assert_array_equal(prompt.positions[:, :-1], expected)
    assert (prompt.positions[:, -1] == expected.max() + 1).all()


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
    spans = []
    start = 0
    for text, (rows, columns), _ in media:
        spans.append(Span(start + text, start + text + rows * columns, (rows, columns)))
        start = spans[-1].stop
    np.testing.assert_array_equal(mrope_positions(len(ids), spans)[:, :-1], expected[:, 0].numpy())
