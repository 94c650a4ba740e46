"""Split equals whole, whole equals transformers, and each check can fail."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.integration.conftest import Served
from tests.integration.conversations import CONVERSATIONS, to_messages
from tests.integration.whole import Whole

TOKENS = 24
TOLERANCE = 1e-4
WITH_MEDIA = [
    name for name, turns in CONVERSATIONS.items() if any(not isinstance(p, str) for _, ps in turns for p in ps)
]


@pytest.fixture(scope="session")
def whole(served: Served) -> Whole:
    """The same bundle without services."""
    return Whole(served.bundle)


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_split_equals_whole(served: Served, whole: Whole, name: str) -> None:
    """Three services give the tokens that their cores give in one process."""
    messages = to_messages(CONVERSATIONS[name])
    answer = served.client.answer(messages, max_tokens=TOKENS, temperature=0)
    assert list(answer.token_ids) == whole.greedy(whole.lay_out(messages), TOKENS)


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_grids_positions_features_and_logits_equal_transformers(served: Served, whole: Whole, name: str) -> None:
    """Grids and positions exactly, features within 2e-5 of the greatest of them, logits within 1e-4."""
    turns = CONVERSATIONS[name]
    inputs = served.reference.inputs(turns)
    laid = whole.lay_out(to_messages(turns))
    kinds = (("image", "pixel_values"), ("video", "pixel_values_videos"))
    expected = [
        (
            inputs.media[f"{kind}_grid_thw"],
            served.reference.features(inputs.media[pixels], inputs.media[f"{kind}_grid_thw"]),
        )
        for kind, pixels in kinds
        if pixels in inputs.media
    ]
    # The conversations with both have the video first.
    expected.reverse()
    assert list(laid.grids) == [tuple(grid) for grids, _ in expected for grid in grids.tolist()]
    np.testing.assert_array_equal(laid.prompt.positions[:, :-1], served.reference.positions(inputs).numpy())
    if expected:
        rows = torch.cat([features for _, features in expected]).numpy()
        # These random encoders give features in the tens, so float32 itself is no finer than this.
        np.testing.assert_allclose(laid.features, rows, rtol=0, atol=2e-5 * np.abs(rows).max())
    np.testing.assert_allclose(whole.logits(laid), served.reference.logits(inputs).numpy(), atol=TOLERANCE)


@pytest.mark.parametrize("name", WITH_MEDIA)
def test_without_a_feature_map_the_logits_are_others(served: Served, whole: Whole, name: str) -> None:
    """Negative control: with the last feature map zeroed, of DeepStack where there is it, no check above passes."""
    laid = whole.lay_out(to_messages(CONVERSATIONS[name]))
    flat = laid.features.copy()
    flat[:, -served.bundle.text.hidden_size :] = 0
    assert np.abs(whole.logits(laid, flat) - whole.logits(laid)).max() > 100 * TOLERANCE


def test_flat_positions_are_others(served: Served, whole: Whole) -> None:
    """Negative control: the graph at transformers' M-RoPE positions gives its logits, and at flat ones it does not."""
    turns = CONVERSATIONS["two images of different sizes"]
    inputs = served.reference.inputs(turns)
    laid = whole.lay_out(to_messages(turns))
    expected = served.reference.logits(inputs).numpy()
    positions = served.reference.positions(inputs).numpy()
    np.testing.assert_allclose(whole.logits_at(laid, positions), expected, atol=TOLERANCE)
    flat = np.broadcast_to(np.arange(positions.shape[1]), positions.shape)
    assert np.abs(whole.logits_at(laid, flat) - expected).max() > 100 * TOLERANCE
