"""The tests of every family on more shapes of Qwen2.5-VL: run by `tests/families/run`."""

from __future__ import annotations

from tests.integration import test_parity, test_split

test_prompt_and_greedy_tokens = test_parity.test_prompt_and_greedy_tokens_equal_transformers
test_swapped_images = test_parity.test_swapped_images_are_another_question
whole = test_split.whole
test_split_equals_whole = test_split.test_split_equals_whole
test_grids_positions_features_and_logits = test_split.test_grids_positions_features_and_logits_equal_transformers
test_without_a_feature_map = test_split.test_without_a_feature_map_the_logits_are_others
test_flat_positions = test_split.test_flat_positions_are_others
