"""Tools over HTTP: definitions, choices, calls and results, as OpenAI's clients write and read them."""

from __future__ import annotations

import copy
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from gateway.conductor import Conductor, Policy
from gateway.http import create_app
from gateway.http.stream import Pace
from gateway.http.translate import JsonNames, parse, to_chat
from gateway.media import RequestLimits
from tests.gateway.conftest import AT_ONCE
from tests.gateway.fakes import FakeDecoder, FakeVision, InProcessDecoder, InProcessVision
from tests.gateway.openai_json import HELLO, PATH, error, events, picture
from vlm.v1 import chat_pb2, gateway_pb2

SCHEMA = {"type": "object", "properties": {"b": {"type": "string"}, "a": {}}, "required": ["b"]}
TOOL = {"type": "function", "function": {"name": "look", "description": "größer", "parameters": SCHEMA, "strict": True}}
OTHER = {"type": "function", "function": {"name": "stay"}}
NAMED = {"type": "function", "function": {"name": "look"}}
CALLED = (
    chat_pb2.ToolCallDelta(index=0, id="call_1", name="look"),
    chat_pb2.ToolCallDelta(index=0, arguments='{"b": '),
    chat_pb2.ToolCallDelta(index=0, arguments='"sea"}'),
    chat_pb2.ToolCallDelta(index=1, id="call_2", name="stay", arguments="{}"),
)


def translated(body: dict[str, Any]) -> gateway_pb2.ChatRequest:
    """The request on the wire."""
    return to_chat(parse(json.dumps(body).encode()), "r-1")


@pytest.fixture
async def http(vision: FakeVision, decoder: FakeDecoder) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application."""
    conductor = Conductor(InProcessVision(vision), InProcessDecoder(decoder), RequestLimits(), Policy(backoff=AT_ONCE))
    pace = Pace(status_seconds=60, comment_seconds=60)
    app = create_app(conductor, seconds=30, max_body_bytes=1 << 20, max_requests=3, pace=pace)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway", timeout=30) as client:
        yield client


def test_definitions() -> None:
    """Names, descriptions and schemas, whose keys keep their order."""
    tools = translated({**HELLO, "tools": [TOOL, OTHER]}).tools
    assert list(tools) == [
        chat_pb2.Tool(name="look", description="größer", parameters=json.dumps(SCHEMA), strict=True),
        chat_pb2.Tool(name="stay"),
    ]


@pytest.mark.parametrize(
    ("fields", "choice"),
    [
        ({}, None),
        ({"tool_choice": "auto"}, chat_pb2.ToolChoice(auto=True)),
        ({"tool_choice": "none"}, chat_pb2.ToolChoice(none=True)),
        ({"tool_choice": "required"}, chat_pb2.ToolChoice(required=True)),
        ({"tool_choice": NAMED}, chat_pb2.ToolChoice(name="look")),
        ({"parallel_tool_calls": True}, None),
        ({"parallel_tool_calls": False}, chat_pb2.ToolChoice(one_call=True)),
        ({"tools": None, "tool_choice": "none"}, None),
        ({"tools": [], "tool_choice": "auto", "parallel_tool_calls": True}, None),
    ],
)
def test_choices(fields: dict[str, Any], choice: chat_pb2.ToolChoice | None) -> None:
    """Every choice of OpenAI's; without tools those that ask for nothing are left out."""
    request = translated({**HELLO, "tools": [TOOL], **fields})
    assert (request.tool_choice if request.HasField("tool_choice") else None) == choice


def test_a_conversation_with_calls_and_results() -> None:
    """Calls without content, arguments as text or as an object, results with pictures."""
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"b": "sea"}'}}
    request = translated(
        {
            "messages": [
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "r"}, picture(b"x")]},
                {
                    "role": "assistant",
                    "content": "b",
                    "tool_calls": [{"function": {"name": "f", "arguments": {"é": 1}}}],
                },
                {"role": "tool", "tool_call_id": "2", "content": "s"},
            ]
        }
    )
    _, first, result, second, _ = request.messages
    assert first.parts[1].tool_call == chat_pb2.ToolCall(id="1", name="look", arguments='{"b": "sea"}')
    assert (result.role, result.tool_call_id, result.parts[1].image.data) == (chat_pb2.ROLE_TOOL, "1", b"x")
    assert second.parts[0].text == "b"
    assert second.parts[1].tool_call == chat_pb2.ToolCall(name="f", arguments='{"é": 1}')


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": 5}}]}, "tools[0].function.parameters"),
        ({"tools": [TOOL], "tool_choice": "must"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools"}}, "tool_choice.type"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        (
            {"messages": [{"role": "user", "content": "x", "tool_calls": [{"function": {"name": "f"}}]}]},
            "messages[0].tool_calls",
        ),
        ({"functions": [{"name": "f"}]}, "functions"),
    ],
)
async def test_what_is_wrong_is_named(http: httpx.AsyncClient, fields: dict[str, Any], param: str) -> None:
    """By its path in the JSON."""
    status, _, found, _ = error(await http.post(PATH, json={**copy.deepcopy(HELLO), **fields}))
    assert (status, found) == (400, param)


def test_names_of_the_decoders_fields() -> None:
    """What the decoder finds wrong is said of the client's field."""
    names = JsonNames(parse(json.dumps({**HELLO, "tools": [TOOL], "tool_choice": NAMED}).encode()))
    assert names("tools[0].name") == "tools[0].function.name"
    assert names("tools") == "tools"
    assert names("tool_choice.name") == "tool_choice.function.name"
    assert names("messages[0].parts[1].tool_call.name") == "messages[0].tool_calls"


async def test_calls_of_a_whole_answer(http: httpx.AsyncClient, decoder: FakeDecoder) -> None:
    """They are put together; an answer that is calls alone has no content."""
    decoder.called = CALLED
    choice = (await http.post(PATH, json={**HELLO, "tools": [TOOL]})).json()["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "A red circle."
    assert choice["message"]["tool_calls"] == [
        {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"b": "sea"}'}},
        {"id": "call_2", "type": "function", "function": {"name": "stay", "arguments": "{}"}},
    ]
    decoder.said = []
    assert (await http.post(PATH, json=HELLO)).json()["choices"][0]["message"]["content"] is None


async def test_calls_in_a_stream(http: httpx.AsyncClient, decoder: FakeDecoder) -> None:
    """The first delta of a call has its id and name, later ones more of the arguments."""
    decoder.called = CALLED
    chunks = events((await http.post(PATH, json={**HELLO, "tools": [TOOL], "stream": True})).text)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks[:-1]]
    assert [delta["tool_calls"] for delta in deltas if "tool_calls" in delta] == [
        [{"index": 0, "id": "call_1", "type": "function", "function": {"name": "look", "arguments": ""}}],
        [{"index": 0, "function": {"arguments": '{"b": '}}],
        [{"index": 0, "function": {"arguments": '"sea"}'}}],
        [{"index": 1, "id": "call_2", "type": "function", "function": {"name": "stay", "arguments": "{}"}}],
    ]
    assert chunks[-2]["choices"][0]["finish_reason"] == "tool_calls"
