"""Long answers in memory that is too short for them: the demo model, all three services."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from prometheus_client import REGISTRY

from demo.pictures import CONVERSATIONS, EXAMPLES
from serving.bundle import Bundle
from tests.system import triptych_system
from triptych import Answer, Client, Image, user
from triptych.bundles import demo_bundle

TOKENS = 300
_NAME = CONVERSATIONS[0].files[0]
PICTURE = Image((EXAMPLES / _NAME).read_bytes())


def ask(client: Client, number: int) -> Answer:
    """A long answer: the model may not end its turn."""
    ends = dict.fromkeys(Bundle.open(demo_bundle()).tokens.eos, -100.0)
    content = (PICTURE, f"What is in the picture, {number}?") if number % 2 else (f"How are you, {number}?",)
    sampling = {"temperature": 1.0, "seed": number} if number > 2 else {}
    return client.answer([user(*content)], max_tokens=TOKENS, logit_bias=ends, **sampling)  # type: ignore[arg-type]


def parks(how: str) -> float:
    """How often a request was parked, and this became of its keys and values."""
    return REGISTRY.get_sample_value("triptych_parks_total", {"keys_and_values": how}) or 0.0


@pytest.mark.parametrize(("parking_bytes", "how"), [(1 << 30, "copied"), (0, "dropped")])
def test_answers_that_share_too_little_memory_are_those_at_rest(parking_bytes: int, how: str) -> None:
    """Five at once in the least memory, which is enough for three: each is whole, and has the tokens that it has alone.

    Whether keys and values of parked requests are copied, or there is no memory for them and they are computed again.
    """
    settings = {"kv_cache_bytes": 1 << 20, "kv_cache_dtype": "float16", "cached_prompts": 0, "slots": 5, "threads": 1}
    with (
        triptych_system(demo_bundle(), kv_parking_bytes=parking_bytes, **settings) as address,
        Client(address) as client,
        ThreadPoolExecutor(5) as pool,
    ):
        before = parks(how)
        alone = [ask(client, number) for number in range(5)]
        assert parks(how) == before
        together = list(pool.map(lambda number: ask(client, number), range(5)))
    assert [answer.token_ids for answer in together] == [answer.token_ids for answer in alone]
    assert {(len(answer.token_ids), answer.finish_limit) for answer in together} == {(TOKENS, "max_tokens")}
    assert parks(how) > before
    assert REGISTRY.get_sample_value("triptych_parked_requests") == 0
