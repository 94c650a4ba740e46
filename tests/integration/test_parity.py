"""The three services together are transformers: the same prompt and the same tokens."""

from __future__ import annotations

import pytest

from tests.integration.conftest import Served
from tests.integration.conversations import CONVERSATIONS, to_messages
from tests.pictures import noise, png

TOKENS = 24


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_prompt_and_greedy_tokens_equal_transformers(served: Served, name: str) -> None:
    """The rendered prompt's ids and 24 greedy tokens are those of transformers."""
    turns = CONVERSATIONS[name]
    inputs = served.reference.inputs(turns)
    answer = served.client.answer(to_messages(turns), max_tokens=TOKENS, return_prompt_token_ids=True)
    assert list(answer.prompt_token_ids) == inputs.input_ids[0].tolist()
    assert answer.usage.media_tokens == int((inputs.mm_token_type_ids > 0).sum())
    assert list(answer.token_ids) == served.reference.generate(inputs, TOKENS)
    assert served.client.count_tokens(to_messages(turns)) == inputs.input_ids.shape[1]


def test_swapped_images_are_another_question(served: Served) -> None:
    """Negative control, the check above can fail: two images in the other order give other tokens."""
    first, second = png(noise(160, 128)), png(noise(160, 128, 7))
    expected = served.reference.generate(served.reference.inputs([("user", [first, second, "Compare."])]), TOKENS)
    same = served.client.answer(to_messages([("user", [first, second, "Compare."])]), max_tokens=TOKENS)
    swapped = served.client.answer(to_messages([("user", [second, first, "Compare."])]), max_tokens=TOKENS)
    assert list(same.token_ids) == expected
    assert list(swapped.token_ids) != expected
