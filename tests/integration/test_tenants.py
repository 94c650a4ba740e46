"""What one tenant has shown and asked is of no use to another, through all three services."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

import exporter
from gateway.keys.file import write_keys
from gateway.keys.key import Key, hash_of
from tests.checkpoints import make_checkpoint
from tests.gateway.openai_json import data_url
from tests.pictures import noise, png
from tests.system import Address, triptych_system
from triptych import Answer, Client, Image, user
from vision_service.encodings import SOURCES

_SEEDS = itertools.count(700)
_WORDS = "Describe this picture in as many words as you can, from the left to the right and from the top to the bottom."


@dataclass(frozen=True)
class House:
    """A system with keys: `a1` and `a2` of one tenant, and `b` of another."""

    address: Address
    clients: dict[str, Client]

    def ask(self, key: str, file: bytes, **options: str) -> Answer:
        """Ask about a picture."""
        return self.clients[key].answer(user(Image(file), _WORDS), max_tokens=4, **options)  # type: ignore[arg-type]

    def post(self, path: str, key: str, body: dict[str, Any]) -> Any:
        """The JSON that the HTTP door answers."""
        headers = {"authorization": f"Bearer tpk_{key}"}
        response = httpx.post(f"{self.address.http}{path}", json=body, headers=headers, timeout=60, trust_env=False)
        assert response.status_code == 200, response.text
        return response.json()


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A small model behind all three services, and keys."""
    folder = tmp_path_factory.mktemp("tenants")
    bundle = exporter.export(
        make_checkpoint(folder / "checkpoint"), folder / "bundle", precision="fp32", progress=False
    )
    path: Path = folder / "keys.json"
    tenants = {"a1": "a", "a2": "a", "b": "b"}
    write_keys(path, [Key(name=name, sha256=hash_of(f"tpk_{name}"), tenant=of) for name, of in tenants.items()])
    with triptych_system(bundle.root, gateway={"keys_file": path}) as address, ExitStack() as stack:
        yield House(address, {name: stack.enter_context(Client(address, api_key=f"tpk_{name}")) for name in tenants})


def picture() -> bytes:
    """A picture that nobody has shown before."""
    return png(noise(160, 128, next(_SEEDS)))


def sources() -> dict[str, float]:
    """Media by the source of their features, as the vision service counts them."""
    return {source: SOURCES.labels(source)._value.get() for source in ("cache", "shared", "encoder")}


def test_a_tenant_finds_nothing_of_another(house: House) -> None:
    """The same picture and prompt: new work for another tenant, and from the caches for the first one's keys."""
    file, before = picture(), sources()
    first, again, other = house.ask("a1", file), house.ask("a2", file), house.ask("b", file)
    assert first.usage.cached_tokens == other.usage.cached_tokens == 0
    assert again.usage.cached_tokens > first.usage.media_tokens
    assert first.timings.vision_seconds > 0
    assert again.timings.vision_seconds == 0
    assert other.timings.vision_seconds > 0
    assert {source: count - before[source] for source, count in sources().items()} == {
        "cache": 0,
        "shared": 0,
        "encoder": 2,
    }
    assert first.token_ids == again.token_ids == other.token_ids
    assert house.ask("b", file).usage.cached_tokens == again.usage.cached_tokens


def test_nor_while_it_is_being_encoded(house: House) -> None:
    """At the same time, each tenant's picture is encoded once, and no prompt waits to share another tenant's."""
    file, before = picture(), sources()
    keys = ["a1", "b", "a2", "b", "a1", "b"]
    with ThreadPoolExecutor(len(keys)) as pool:
        answers = list(pool.map(lambda key: house.ask(key, file), keys))
    assert len({answer.token_ids for answer in answers}) == 1
    assert sources()["encoder"] - before["encoder"] == 2
    for tenant in "ab":
        mine = [answer for key, answer in zip(keys, answers, strict=True) if key.startswith(tenant)]
        assert min(answer.usage.cached_tokens for answer in mine) == 0


def test_text_alone(house: House) -> None:
    """A prompt of text is not shared either, at the HTTP door; several answers of one request share it as ever."""

    def cached(key: str, **more: object) -> int:
        messages = [{"role": "user", "content": f"{_WORDS} {_WORDS}"}]
        answer = house.post("/v1/chat/completions", key, {"messages": messages, "max_tokens": 2, **more})
        return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])

    assert cached("a1") == 0
    assert cached("a2") > 0
    assert cached("b", n=2) == 0
    assert cached("b") > 0
    assert cached("b", cache_salt="mine") == 0
    assert cached("b", cache_salt="mine") > 0


def test_a_digest_tells_nothing(house: House) -> None:
    """Counting the tokens of another tenant's picture decodes it: what the vision service keeps is not looked at."""
    file = picture()
    answer = house.ask("a1", file)
    counted = house.clients["b"].count(user(Image(file), _WORDS))
    assert counted.prompt_tokens == answer.usage.prompt_tokens
    content = [{"type": "image_url", "image_url": {"url": data_url(file)}}, {"type": "text", "text": _WORDS}]
    tokenized = house.post("/tokenize", "b", {"messages": [{"role": "user", "content": content}]})
    assert tokenized["count"] == counted.prompt_tokens
    assert house.ask("b", file).timings.vision_seconds > 0
