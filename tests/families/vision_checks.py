"""The tests of models with an encoder, on more shapes of Qwen3-VL and Qwen2.5-VL in fp32."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.families.shapes import WITH_ENCODER
from tests.integration import test_parity, test_split
from tests.integration.conftest import Served, serving

test_prompt_and_greedy_tokens = test_parity.test_prompt_and_greedy_tokens_equal_transformers
test_swapped_images = test_parity.test_swapped_images_are_another_question
whole = test_split.whole
test_split_equals_whole = test_split.test_split_equals_whole
test_grids_positions_features_and_logits = test_split.test_grids_positions_features_and_logits_equal_transformers
test_without_a_feature_map = test_split.test_without_a_feature_map_the_logits_are_others
test_flat_positions = test_split.test_flat_positions_are_others


@pytest.fixture(scope="session", params=WITH_ENCODER)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Each shape in turn, served."""
    with serving(WITH_ENCODER[request.param], tmp_path_factory.mktemp(request.param)) as system:
        yield system
