"""Reasoning over HTTP: apart in answers, accepted in history, switched where the model can be."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from gateway.conductor import Conductor, Policy
from gateway.http import create_app
from gateway.http.ignored import IGNORED_HEADER
from gateway.http.stream import Pace
from gateway.http.translate import parse, to_chat
from gateway.media import RequestLimits
from serving.errors import Reason, invalid
from tests.gateway.conftest import AT_ONCE
from tests.gateway.fakes import FakeDecoder, FakeVision, GenerateCall, InProcessDecoder, InProcessVision
from tests.gateway.openai_json import HELLO, PATH, error, events
from vlm.v1 import gateway_pb2


@pytest.fixture
async def http(vision: FakeVision, decoder: FakeDecoder) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application; the model thinks before it answers."""
    decoder.thoughts = ("I ", "look.")
    conductor = Conductor(InProcessVision(vision), InProcessDecoder(decoder), RequestLimits(), Policy(backoff=AT_ONCE))
    pace = Pace(status_seconds=60, comment_seconds=60)
    app = create_app(conductor, seconds=30, max_body_bytes=1 << 20, max_requests=3, pace=pace)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway", timeout=30) as client:
        yield client


def translated(**fields: Any) -> gateway_pb2.ChatRequest:
    """The request on the wire."""
    return to_chat(parse(json.dumps({**HELLO, **fields}).encode()), "r-1")


async def test_a_whole_answer_has_it_apart(http: httpx.AsyncClient) -> None:
    """Beside the content, and its tokens in the usage."""
    body = (await http.post(PATH, json=HELLO)).json()
    message = body["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("I look.", "A red circle.")
    assert body["usage"]["completion_tokens"] == 5
    assert body["usage"]["completion_tokens_details"] == {"reasoning_tokens": 2}


async def test_a_stream_has_it_apart(http: httpx.AsyncClient) -> None:
    """In chunks of its own, before the content."""
    response = await http.post(PATH, json={**HELLO, "stream": True})
    deltas = [chunk["choices"][0]["delta"] for chunk in events(response.text)[:-1]]
    assert deltas[1:-1] == [
        {"reasoning_content": "I "},
        {"reasoning_content": "look."},
        {"content": "A "},
        {"content": "red "},
        {"content": "circle."},
    ]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_need_not_have_it(http: httpx.AsyncClient, stream: bool) -> None:
    """`include_reasoning` false, as vLLM has it, leaves it out; its tokens were written all the same."""
    body = {**HELLO, "include_reasoning": False, "stream": stream, "stream_options": {"include_usage": True}}
    response = await http.post(PATH, json=body)
    assert "reasoning_content" not in response.text
    assert '"reasoning_tokens":2' in response.text
    assert IGNORED_HEADER not in response.headers


async def test_a_model_that_does_not_think_has_no_such_field(http: httpx.AsyncClient, decoder: FakeDecoder) -> None:
    """Its answers are as they were."""
    decoder.thoughts = ()
    assert "reasoning_content" not in (await http.post(PATH, json=HELLO)).text


async def test_log_probabilities_stay_with_their_tokens(http: httpx.AsyncClient, decoder: FakeDecoder) -> None:
    """Those of the reasoning come too, one for each token, in the chunks that have it, wanted or not."""
    decoder.said = [("", []), ("red", [])]
    decoder.scored = True
    for wanted, names in ((True, ["reasoning_content"] * 2), (False, ["content"] * 2)):
        body = {**HELLO, "logprobs": True, "stream": True, "include_reasoning": wanted}
        chunks = events((await http.post(PATH, json=body)).text)[1:-2]
        choices = [chunk["choices"][0] for chunk in chunks]
        assert [next(iter(choice["delta"])) for choice in choices] == [*names, "content", "content"]
        assert [len(choice["logprobs"]["content"]) for choice in choices] == [1] * 4


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
async def test_it_is_accepted_in_history(http: httpx.AsyncClient, decoder: FakeDecoder, name: str) -> None:
    """By the name that most servers have for it, and by vLLM's; an answer may be sent back as it came."""
    answered = (await http.post(PATH, json=HELLO)).json()["choices"][0]["message"]
    answered[name] = answered.pop("reasoning_content")
    question = {"role": "user", "content": "Sure?", "reasoning_content": "no assistant's, so nobody's"}
    response = await http.post(PATH, json={"messages": [*HELLO["messages"], answered, question]})
    assert response.status_code == 200
    opening = decoder.calls[-1].open
    assert opening is not None
    assert [message.reasoning for message in opening.messages] == ["", "I look.", ""]
    assert opening.messages[1].parts[0].text == "A red circle."


def test_an_answer_that_was_all_reasoning_is_accepted_in_history() -> None:
    """Its content is empty or null."""
    for content in ("", None):
        history = [*HELLO["messages"], {"role": "assistant", "content": content, "reasoning_content": "I look and"}]
        _, message = translated(messages=history).messages
        assert (message.reasoning, message.parts[0].text) == ("I look and", "")


@pytest.mark.parametrize(
    ("fields", "choice"),
    [
        ({}, None),
        ({"chat_template_kwargs": None}, None),
        ({"chat_template_kwargs": {}}, None),
        ({"chat_template_kwargs": {"enable_thinking": None}}, None),
        ({"chat_template_kwargs": {"enable_thinking": False}}, False),
        ({"chat_template_kwargs": {"enable_thinking": True, "thinking": True}}, True),
        ({"enable_thinking": False}, False),
        ({"enable_thinking": False, "chat_template_kwargs": {"enable_thinking": True}}, True),
    ],
)
def test_whether_to_think_is_the_templates(fields: dict[str, Any], choice: bool | None) -> None:
    """By vLLM's name for it, or by Alibaba's."""
    request = translated(**fields)
    assert (request.enable_thinking if request.HasField("enable_thinking") else None) == choice


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"chat_template_kwargs": {"enable_thinking": False}}, "chat_template_kwargs.enable_thinking"),
        ({"enable_thinking": False}, "enable_thinking"),
    ],
)
async def test_a_model_that_always_thinks_says_so(
    http: httpx.AsyncClient, decoder: FakeDecoder, fields: dict[str, Any], name: str
) -> None:
    """400, with the field's name as the client has it."""

    async def hook(call: GenerateCall, stage: str) -> None:
        assert call.open is not None
        if stage == "open" and call.open.HasField("enable_thinking"):
            raise invalid("enable_thinking", "is false", reason=Reason.THINKING_NOT_OPTIONAL)

    decoder.hook = hook
    status, _, param, code = error(await http.post(PATH, json={**HELLO, **fields}))
    assert (status, param, code) == (400, name, "thinking_not_optional")


async def test_another_variable_of_the_template_is_ignored_by_name(http: httpx.AsyncClient) -> None:
    """Unless it would change the prompt."""
    response = await http.post(PATH, json={**HELLO, "chat_template_kwargs": {"thinking": True}})
    assert response.headers[IGNORED_HEADER] == "chat_template_kwargs.thinking"
    refused = await http.post(PATH, json={**HELLO, "chat_template_kwargs": {"add_vision_id": True}})
    assert error(refused)[2] == "chat_template_kwargs.add_vision_id"


def test_sampling_and_circles() -> None:
    """The recommended sampling is Triptych's own field, the detection of circles has vLLM's names."""
    sent = {"max_pattern_size": 64, "min_pattern_size": 2, "min_count": 4}
    generation = translated(recommended_sampling=False, repetition_detection=sent).generation
    assert generation.HasField("recommended_sampling")
    assert not generation.recommended_sampling
    circles = generation.repetition_detection
    assert {name: getattr(circles, name) for name in sent} == sent
    silent = translated().generation
    assert not silent.HasField("recommended_sampling")
    assert not silent.HasField("repetition_detection")
