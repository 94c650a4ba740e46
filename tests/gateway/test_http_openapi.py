"""/openapi.json describes what is served."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import jsonschema
import pytest

from gateway.conductor import Conductor, Policy
from gateway.http import create_app
from gateway.media import RequestLimits
from tests.gateway.conftest import AT_ONCE
from tests.gateway.fakes import MODEL, FakeDecoder, FakeVision, InProcessDecoder, InProcessVision
from tests.gateway.openai_json import HELLO, PATH, ask, picture
from tests.gateway.test_http_tools import CALLED, TOOL

BODIES = {"/v1/completions": {"prompt": "Hello"}, "/detokenize": {"tokens": [1, 2]}}


@pytest.fixture
async def http(vision: FakeVision, decoder: FakeDecoder) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application."""
    conductor = Conductor(InProcessVision(vision), InProcessDecoder(decoder), RequestLimits(), Policy(backoff=AT_ONCE))
    app = create_app(conductor, seconds=30, max_body_bytes=1 << 20, max_requests=3)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway", timeout=30) as client:
        yield client


@pytest.fixture
async def described(http: httpx.AsyncClient) -> dict[str, Any]:
    """The document."""
    return dict((await http.get("/openapi.json")).json())


def schema(described: dict[str, Any], name: str) -> jsonschema.Draft202012Validator:
    """A schema of the document."""
    whole = {"components": described["components"], "$ref": f"#/components/schemas/{name}"}
    return jsonschema.Draft202012Validator(whole)


async def test_every_path_and_no_other_is_described(http: httpx.AsyncClient, described: dict[str, Any]) -> None:
    """With the methods that are served."""
    for path, operations in described["paths"].items():
        for method in operations:
            response = await http.request(method, path.replace("{name}", MODEL), json=BODIES.get(path, HELLO))
            assert response.status_code == 200, path
            answer = operations[method]["responses"]["200"]["content"]["application/json"]["schema"]["$ref"]
            schema(described, answer.rpartition("/")[2]).validate(response.json())
    app: Any = http._transport.app  # type: ignore[attr-defined]  # what is served is nowhere else
    served = {path.replace(":path", "") for path in app._paths}
    assert served == {*described["paths"], "/openapi.json"}


async def test_references_lead_somewhere(described: dict[str, Any]) -> None:
    """The schemas are schemas, and each that one names is there."""
    schemas = described["components"]["schemas"]
    for one in schemas.values():
        jsonschema.Draft202012Validator.check_schema(one)
    text = json.dumps(described)
    named = {part.partition('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert named <= set(schemas)


@pytest.mark.parametrize(
    "body",
    [
        ask({"type": "text", "text": "Hi"}, picture(b"file 1"), temperature=0.5, top_k=-1, seed=-1, stop="a"),
        {**HELLO, "tools": [TOOL], "tool_choice": "required", "max_tokens": 16.0, "colour": "red"},
    ],
)
async def test_requests_and_answers_fit(http: httpx.AsyncClient, described: dict[str, Any], body: Any) -> None:
    """What is served fits the description of a request, and the answer that of an answer."""
    schema(described, "CompletionRequest").validate(body)
    schema(described, "Completion").validate((await http.post(PATH, json=body)).json())


async def test_calls_fit(http: httpx.AsyncClient, decoder: FakeDecoder, described: dict[str, Any]) -> None:
    """An answer with calls and reasoning does too."""
    decoder.called, decoder.thoughts = CALLED, ("well",)
    answer = (await http.post(PATH, json={**HELLO, "tools": [TOOL]})).json()
    schema(described, "Completion").validate(answer)
    del answer["choices"][0]["message"]["tool_calls"][0]["id"]
    assert not schema(described, "Completion").is_valid(answer)


@pytest.mark.parametrize(
    "fields", [{"max_tokens": -2}, {"max_tokens": 1 << 32}, {"messages": "Hi"}, {"logprobs": 1}, {"seed": 1 << 63}]
)
async def test_errors_fit(http: httpx.AsyncClient, described: dict[str, Any], fields: dict[str, Any]) -> None:
    """What the description of a request does not allow is refused, by an error that fits its own."""
    body = {**HELLO, **fields}
    assert not schema(described, "CompletionRequest").is_valid(body)
    response = await http.post(PATH, json=body)
    assert response.status_code == 400
    schema(described, "Error").validate(response.json())
