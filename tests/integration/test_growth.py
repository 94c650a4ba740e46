"""Long answers in memory that is too short for them: the demo model, all three services."""

from __future__ import annotations

from collections.abc import Iterator
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


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """A decoder with the least memory for keys and values that may be set, and nothing but that in it."""
    settings = {"kv_cache_bytes": 1 << 20, "cached_prompts": 0, "int8": False, "slots": 5, "threads": 1}
    with triptych_system(demo_bundle(), **settings) as address, Client(address) as client:
        yield client


def ask(client: Client, number: int) -> Answer:
    """A long answer: the model may not end its turn."""
    ends = dict.fromkeys(Bundle.open(demo_bundle()).tokens.eos, -100.0)
    content = (PICTURE, f"What is in the picture, {number}?") if number % 2 else (f"How are you, {number}?",)
    sampling = {"temperature": 1.0, "seed": number} if number > 2 else {}
    return client.answer([user(*content)], max_tokens=TOKENS, logit_bias=ends, **sampling)  # type: ignore[arg-type]


def parks() -> float:
    """How often a request was parked, its keys and values copied out."""
    return REGISTRY.get_sample_value("triptych_parks_total", {"keys_and_values": "copied"}) or 0.0


def test_answers_that_share_too_little_memory_are_those_at_rest(client: Client) -> None:
    """Five at once in memory for three: each is whole, and has the tokens that it has alone."""
    numbers = range(5)
    before = parks()
    alone = [ask(client, number) for number in numbers]
    assert parks() == before
    with ThreadPoolExecutor(len(numbers)) as pool:
        together = list(pool.map(lambda number: ask(client, number), numbers))
    assert [answer.token_ids for answer in together] == [answer.token_ids for answer in alone]
    assert {(len(answer.token_ids), answer.finish_limit) for answer in together} == {(TOKENS, "max_tokens")}
    assert parks() > before
    assert REGISTRY.get_sample_value("triptych_parked_requests") == 0
