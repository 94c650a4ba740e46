"""The OpenAI-compatible door, over a socket, in front of fake tiers in this process."""

from __future__ import annotations

import asyncio
import copy
import json
import math
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from starlette.types import ASGIApp

from gateway.conductor import Conductor, Policy
from gateway.http import HttpServer, create_app
from gateway.http.stream import Pace
from gateway.media import RequestLimits
from serving.errors import Code, Reason, ServiceError, invalid, overloaded
from tests.gateway.conftest import AT_ONCE
from tests.gateway.fakes import (
    MODEL,
    EncodeCall,
    FakeDecoder,
    FakeVision,
    GenerateCall,
    InProcessDecoder,
    InProcessVision,
    down,
)
from tests.gateway.openai_json import HELLO, PATH, data_url, error, events, picture
from tests.gateway.requests import image, text, user, video
from vlm.v1 import chat_pb2


def asked(decoder: FakeDecoder) -> Any:
    """What the decoder was asked last."""
    opening = decoder.calls[-1].open
    assert opening is not None
    return opening


@pytest.fixture
def tiers(vision: FakeVision, decoder: FakeDecoder) -> tuple[InProcessVision, InProcessDecoder]:
    """One replica of each."""
    return InProcessVision(vision), InProcessDecoder(decoder)


@pytest.fixture
def app(tiers: tuple[InProcessVision, InProcessDecoder]) -> ASGIApp:
    """The application."""
    policy = Policy(backoff=AT_ONCE)
    conductor = Conductor(*tiers, RequestLimits(image_bytes=1 << 20), policy)
    pace = Pace(status_seconds=60, comment_seconds=60)  # here no answer depends on the time that it takes
    return create_app(conductor, seconds=30, max_body_bytes=4 << 20, max_requests=3, pace=pace)


@pytest.fixture
async def http(app: ASGIApp) -> AsyncIterator[httpx.AsyncClient]:
    """A client that calls the application: what is asked and answered."""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway", timeout=30) as client:
        yield client


@pytest.fixture
async def wire(app: ASGIApp) -> AsyncIterator[httpx.AsyncClient]:
    """A client on a socket: how it comes, and who leaves when."""
    server = HttpServer(app, grace_seconds=0)
    port = await server.start("127.0.0.1", 0)
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False) as client:
            yield client
    finally:
        await server.stop()


async def test_health(wire: httpx.AsyncClient) -> None:
    """`/healthz` answers while the gateway is up."""
    response = await wire.get("/healthz")
    replicas = {"vision": {"available": 1, "replicas": 1}, "decoder": {"available": 1, "replicas": 1}}
    assert (response.status_code, response.json()) == (200, {"status": "serving", **replicas})


async def test_health_without_a_decoder(
    tiers: tuple[InProcessVision, InProcessDecoder], http: httpx.AsyncClient
) -> None:
    """Without an available decoder `/healthz` is 503; without vision services text is still served; `/livez` is 200."""
    vision, decoder = tiers
    vision.available = 0
    response = await http.get("/healthz")
    assert (response.status_code, response.json()["vision"]) == (200, {"available": 0, "replicas": 1})
    decoder.available = 0
    response = await http.get("/health")
    assert (response.status_code, response.json()["status"]) == (503, "unavailable")
    assert (await http.get("/livez")).status_code == 200


async def test_models(http: httpx.AsyncClient) -> None:
    """`/v1/models` lists what is served."""
    body = (await http.get("/v1/models")).json()
    assert body["object"] == "list"
    assert [(model["id"], model["object"]) for model in body["data"]] == [(MODEL, "model")]


async def test_a_model_tells_how_it_thinks_and_is_best_sampled(http: httpx.AsyncClient) -> None:
    """As its own values, in the digits that were written."""
    [model] = (await http.get("/v1/models")).json()["data"]
    assert (model["thinks"], model["thinking_optional"]) == (True, False)
    assert model["recommended_sampling"] == {
        "temperature": 0.6,
        "top_p": 1.0,
        "top_k": 20,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
    }


async def test_a_whole_completion(http: httpx.AsyncClient) -> None:
    """Without `stream` the answer comes as one JSON object, with OpenAI's usage."""
    response = await http.post(PATH, json=HELLO, headers={"x-request-id": "mine"})
    assert response.status_code == 200
    assert response.headers["x-request-id"] == "mine"
    body = response.json()
    assert (body["id"], body["object"], body["model"]) == ("chatcmpl-mine", "chat.completion", MODEL)
    [choice] = body["choices"]
    assert choice["message"]["content"] == "A red circle."
    assert choice["finish_reason"] == "stop"
    assert body["usage"] == {
        "prompt_tokens": 7,
        "completion_tokens": 3,
        "total_tokens": 10,
        "prompt_tokens_details": {"cached_tokens": 2},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


@pytest.mark.parametrize("include_usage", [False, True])
async def test_a_streamed_completion(include_usage: bool, wire: httpx.AsyncClient) -> None:
    """With `stream` it comes in chunks: a role, the words, a reason, usage where it was asked for, `[DONE]`."""
    response = await wire.post(PATH, json={**HELLO, "stream": True, "stream_options": {"include_usage": include_usage}})
    assert response.headers["content-type"].startswith("text/event-stream")
    *chunks, done = events(response.text)
    assert done == "[DONE]"
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    if include_usage:
        last = chunks.pop()
        assert (last["choices"], last["usage"]["total_tokens"]) == ([], 10)
        assert all(chunk["usage"] is None for chunk in chunks)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert [delta["content"] for delta in deltas[1:-1]] == ["A ", "red ", "circle."]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * 4 + ["stop"]


async def test_a_stream_comes_as_it_is_made(wire: httpx.AsyncClient, decoder: FakeDecoder) -> None:
    """The client has each word before the next is made."""
    goes_on = asyncio.Semaphore(1)

    async def hook(call: GenerateCall, stage: str) -> None:
        if stage == "delta":
            await goes_on.acquire()

    decoder.hook = hook
    words = []
    async with wire.stream("POST", PATH, json={**HELLO, "stream": True}) as response:
        async for line in response.aiter_lines():
            if '"content":"' in line and '"role"' not in line:
                words.append(json.loads(line.removeprefix("data: "))["choices"][0]["delta"]["content"])
                goes_on.release()
    assert words == list(decoder.words)


async def test_messages_and_options_become_those_of_the_wire(http: httpx.AsyncClient, decoder: FakeDecoder) -> None:
    """Roles, parts and options arrive at the decoder as a gRPC client would have sent them."""
    body = {
        "model": MODEL,
        "messages": [
            {"role": "developer", "content": "Be short."},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "Look: "},
                    picture(b"file one", detail="high"),
                    {"type": "video_url", "video_url": {"url": data_url(b"file two", "video/mp4")}},
                ],
            },
            {"role": "assistant", "content": "I see.", "refusal": None, "tool_calls": [], "annotations": []},
            {"role": "user", "content": "And?"},
        ],
        "max_completion_tokens": 9.0,
        "temperature": 0.5,
        "top_p": 0.25,
        "top_k": 3,
        "min_p": 0.125,
        "repetition_penalty": 1.5,
        "presence_penalty": -0.5,
        "frequency_penalty": 2,
        "logit_bias": {"7": -100, "8": 0.5},
        "logprobs": True,
        "top_logprobs": 2,
        "seed": 7,
        "stop": "END",
        "stop_token_ids": [5, 6],
        "min_tokens": 2,
        "ignore_eos": True,
        "user": "somebody",
        "metadata": {"a": "b"},
    }
    assert (await http.post(PATH, json=body)).status_code == 200
    opening = asked(decoder)
    expected = [
        chat_pb2.Message(role=chat_pb2.ROLE_SYSTEM, parts=[text("Be short.")]),
        user(text("Look: "), image(b""), video(b"")),
        chat_pb2.Message(role=chat_pb2.ROLE_ASSISTANT, parts=[text("I see.")]),
        user(text("And?")),
    ]
    assert [(m.role, [p.WhichOneof("part") for p in m.parts]) for m in opening.messages] == [
        (m.role, [p.WhichOneof("part") for p in m.parts]) for m in expected
    ]
    assert bytes(decoder.calls[0].features[1]).startswith(b"file two")
    assert opening.model == MODEL
    assert opening.generation == chat_pb2.GenerationOptions(
        max_tokens=9,
        clamp_max_tokens=True,
        temperature=0.5,
        top_p=0.25,
        top_k=3,
        min_p=0.125,
        repetition_penalty=1.5,
        presence_penalty=-0.5,
        frequency_penalty=2,
        logit_bias={7: -100, 8: 0.5},
        logprobs=2,
        seed=7,
        stop=["END"],
        stop_token_ids=[5, 6],
        min_tokens=2,
        ignore_eos=True,
    )


async def test_options_left_out_stay_unset(http: httpx.AsyncClient, decoder: FakeDecoder) -> None:
    """What the client leaves out, or sends as null, is the checkpoint's to say."""
    assert (await http.post(PATH, json={**HELLO, "temperature": None, "top_k": -1})).status_code == 200
    assert asked(decoder).generation == chat_pb2.GenerationOptions(top_k=0)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("limit", "name"),
    [
        (chat_pb2.FINISH_LIMIT_MAX_TOKENS, "max_tokens"),
        (chat_pb2.FINISH_LIMIT_SERVER, "server"),
        (chat_pb2.FINISH_LIMIT_CONTEXT, "context"),
        (chat_pb2.FINISH_LIMIT_KV_CACHE, "kv_cache"),
        (chat_pb2.FINISH_LIMIT_DEADLINE, "deadline"),
        (chat_pb2.FINISH_LIMIT_REPETITION, "repetition"),
        (chat_pb2.FINISH_LIMIT_UNSPECIFIED, None),
    ],
)
async def test_the_limit_that_ended_an_answer_is_named(
    *, stream: bool, limit: chat_pb2.FinishLimit, name: str | None, wire: httpx.AsyncClient, decoder: FakeDecoder
) -> None:
    """Beside OpenAI's `finish_reason`, which stays `length`; an answer that ended by itself has no limit."""
    decoder.limit = limit
    response = await wire.post(PATH, json={**HELLO, "stream": stream})
    choices = [body["choices"][0] for body in (events(response.text)[:-1] if stream else [response.json()])]
    assert choices[-1]["finish_reason"] == ("length" if limit else "stop")
    assert choices[-1].get("finish_limit") == name
    assert not any("finish_limit" in choice for choice in choices[:-1])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
async def test_a_number_of_tokens_that_was_cut_is_told(
    stream: bool, field: str, wire: httpx.AsyncClient, decoder: FakeDecoder
) -> None:
    """The decoder is asked to cut it instead of refusing it; `max_tokens` tells to what, and is there only then."""
    decoder.max_tokens = 300
    for asked_for, told in ((65536, 300), (300, None), (None, None)):
        body = {**HELLO, "stream": stream, **({} if asked_for is None else {field: asked_for})}
        response = await wire.post(PATH, json=body)
        answer = events(response.text)[0] if stream else response.json()
        assert (response.status_code, answer.get("max_tokens")) == (200, told)
        assert decoder.calls[-1].open is not None
        sent = decoder.calls[-1].open.generation
        assert (sent.HasField("max_tokens"), sent.clamp_max_tokens) == (asked_for is not None,) * 2


@pytest.mark.parametrize(("sent", "asked_for"), [({}, 0), ({"top_logprobs": 0}, 0), ({"top_logprobs": 20}, 20)])
async def test_log_probabilities_may_be_asked_for_alone(
    sent: dict[str, int], asked_for: int, http: httpx.AsyncClient, decoder: FakeDecoder
) -> None:
    """`logprobs: true` without alternatives asks for those of the tokens drawn."""
    assert (await http.post(PATH, json={**HELLO, "logprobs": True, **sent})).status_code == 200
    assert asked(decoder).generation == chat_pb2.GenerationOptions(logprobs=asked_for)


def scored(token: int, text: str, logprob: float, raw: bytes | None = None) -> chat_pb2.TokenLogprob:
    """A token with its log probability."""
    return chat_pb2.TokenLogprob(token_id=token, text=text, logprob=logprob, raw=text.encode() if raw is None else raw)


# A character in two tokens whose text comes with the second, a word that a stop string may hold back, the end.
POSITIONS = [
    ("", chat_pb2.PositionLogprobs(chosen=scored(1, "", -0.5, b"\xc3"), top=[scored(9, "<|im_end|>", -0.25, b"")])),
    ("é", chat_pb2.PositionLogprobs(chosen=scored(2, "", -1, b"\xa9"), top=[scored(2, "", -1, b"\xa9")])),
    ("", chat_pb2.PositionLogprobs(chosen=scored(3, " a", -2), top=[scored(4, " b", -math.inf)])),
    (" a", chat_pb2.PositionLogprobs(chosen=scored(9, "<|im_end|>", -4, b""))),
]
CONTENT = [
    {
        "token": "\\xc3",
        "logprob": -0.5,
        "bytes": [0xC3],
        "top_logprobs": [{"token": "<|im_end|>", "logprob": -0.25, "bytes": None}],
    },
    {
        "token": "\\xa9",
        "logprob": -1,
        "bytes": [0xA9],
        "top_logprobs": [{"token": "\\xa9", "logprob": -1, "bytes": [0xA9]}],
    },
    {
        "token": " a",
        "logprob": -2,
        "bytes": [0x20, 0x61],
        "top_logprobs": [{"token": " b", "logprob": -9999, "bytes": [0x20, 0x62]}],
    },
]


async def test_log_probabilities_of_a_whole_answer(http: httpx.AsyncClient, decoder: FakeDecoder) -> None:
    """In OpenAI's shape: the tokens of the content in order, their bytes joined are its text, the end is not one."""
    decoder.said = [(text, [position]) for text, position in POSITIONS]
    body = (await http.post(PATH, json={**HELLO, "logprobs": True, "top_logprobs": 1})).json()
    (choice,) = body["choices"]
    assert choice["logprobs"] == {"content": CONTENT, "refusal": None}
    joined = b"".join(bytes(token["bytes"]) for token in choice["logprobs"]["content"])
    assert joined.decode() == choice["message"]["content"] == "é a"


async def test_log_probabilities_in_a_stream(wire: httpx.AsyncClient, decoder: FakeDecoder) -> None:
    """They come with their tokens, also where the text of these is still held back, and in the same shape."""
    decoder.said = [(text, [position]) for text, position in POSITIONS]
    response = await wire.post(PATH, json={**HELLO, "stream": True, "logprobs": True})
    *chunks, done = events(response.text)
    assert done == "[DONE]"
    choices = [chunk["choices"][0] for chunk in chunks]
    assert [choice["delta"].get("content") for choice in choices] == ["", "", "é", "", " a", None]
    told = [choice["logprobs"] for choice in choices]
    assert [each and len(each["content"]) for each in told] == [None, 1, 1, 1, None, None]
    assert [token for each in told if each for token in each["content"]] == CONTENT


async def test_log_probabilities_that_nobody_asked_for(wire: httpx.AsyncClient, decoder: FakeDecoder) -> None:
    """Without `logprobs` an answer has none, and no chunk without text, whatever the decoder sends."""
    decoder.said = [(text, [position]) for text, position in POSITIONS]
    assert (await wire.post(PATH, json=HELLO)).json()["choices"][0]["logprobs"] is None
    *chunks, _ = events((await wire.post(PATH, json={**HELLO, "stream": True})).text)
    choices = [chunk["choices"][0] for chunk in chunks]
    assert [choice["delta"].get("content") for choice in choices] == ["", "é", " a", None]
    assert {json.dumps(choice["logprobs"]) for choice in choices} == {"null"}


@pytest.mark.parametrize(
    ("path", "param"),
    [
        ("generation.logprobs", "top_logprobs"),
        ("generation.logit_bias[7]", "logit_bias[7]"),
        ("generation.presence_penalty", "presence_penalty"),
        ("generation.min_p", "min_p"),
    ],
)
async def test_ranges_of_the_decoder_name_fields_of_the_json(
    path: str, param: str, http: httpx.AsyncClient, decoder: FakeDecoder
) -> None:
    """What the decoder says of an option is said of the field that the client sent."""

    async def hook(call: GenerateCall, stage: str) -> None:
        raise invalid(path, "is 25 and must be from 0 to 20")

    decoder.hook = hook
    response = await http.post(PATH, json={**HELLO, "logprobs": True, "top_logprobs": 25})
    assert error(response) == (400, "invalid_request_error", param, "field_invalid")
    assert response.json()["error"]["message"] == f"{param}: is 25 and must be from 0 to 20"


async def test_what_asks_for_nothing_may_be_sent(http: httpx.AsyncClient) -> None:
    """Fields that are not served pass at the values that client libraries send by themselves."""
    neutral = {
        "n": 1,
        "tools": [],
        "tool_choice": "none",
        "parallel_tool_calls": True,
        "logprobs": False,
        "top_logprobs": 0,
        "logit_bias": {},
        "response_format": {"type": "text"},
        "frequency_penalty": 0,
        "presence_penalty": 0.0,
        "store": False,
        "service_tier": "auto",
        "modalities": ["text"],
    }
    assert (await http.post(PATH, json={**HELLO, **neutral})).status_code == 200


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("length_penalty", 2),
        ("functions", [{}]),
        ("reasoning_effort", "low"),
        ("use_beam_search", True),
        ("use_beam_search", 1),
        ("allowed_token_ids", [5]),
        ("add_generation_prompt", False),
        ("stream_options.continuous_usage_stats", True),
    ],
)
async def test_what_is_not_served_is_refused_by_name(field: str, value: Any, http: httpx.AsyncClient) -> None:
    """A field that would change the answer is never ignored; no SDK sends the request again."""
    body: dict[str, Any] = copy.deepcopy(HELLO)
    owner, _, name = field.rpartition(".")
    holder = {"": body, "messages[0]": body["messages"][0]}.get(owner) or body.setdefault(owner, {})
    holder[name] = value
    response = await http.post(PATH, json=body)
    assert error(response) == (400, "invalid_request_error", field, "field_unimplemented")
    assert response.headers["x-should-retry"] == "false"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "messages"),
        ({"messages": "Hello"}, "messages"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "smell"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": 5}}]}]},
            "messages[0].content[0].image_url.url",
        ),
        ({**HELLO, "temperature": "hot"}, "temperature"),
        ({**HELLO, "seed": 1 << 63}, "seed"),
        ({**HELLO, "seed": 1.5}, "seed"),
        ({**HELLO, "continue_final_message": True}, "continue_final_message"),
        ({**HELLO, "max_tokens": 1.5}, "max_tokens"),
        ({**HELLO, "max_tokens": 0}, "max_tokens"),
        ({**HELLO, "max_completion_tokens": -2}, "max_completion_tokens"),
        ({**HELLO, "n": 0}, "n"),
        ({**HELLO, "stop": [1]}, "stop"),
        ({**HELLO, "min_p": "some"}, "min_p"),
        ({**HELLO, "presence_penalty": []}, "presence_penalty"),
        ({**HELLO, "logit_bias": [5]}, "logit_bias"),
        ({**HELLO, "logit_bias": {"word": 1}}, "logit_bias.word"),
        ({**HELLO, "logit_bias": {"-1": 1}}, "logit_bias.-1"),
        ({**HELLO, "logit_bias": {"5": "much"}}, "logit_bias.5"),
        ({**HELLO, "logprobs": 5}, "logprobs"),
        ({**HELLO, "logprobs": True, "top_logprobs": -1}, "top_logprobs"),
        ({**HELLO, "top_logprobs": 5}, "top_logprobs"),
        ({**HELLO, "logprobs": False, "top_logprobs": 5}, "top_logprobs"),
        ([], "body"),
    ],
)
async def test_json_of_another_shape_is_refused_by_name(body: Any, param: str, http: httpx.AsyncClient) -> None:
    """What is not OpenAI's JSON is a 400 with the path of the field at fault."""
    status, kind, found, _ = error(await http.post(PATH, json=body))
    assert (status, kind) == (400, "invalid_request_error")
    assert found.removesuffix("[0]") == param or found == param


async def test_what_is_not_json_is_refused(http: httpx.AsyncClient) -> None:
    """A body that is no JSON is a 400."""
    assert error(await http.post(PATH, content=b"{"))[0] == 400


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (r'{"messages": [{"role": "user", "content": "a\ud800"}]}', "messages[0].content"),
        (
            r'{"messages": [{"role": "user", "content": [{"type": "text", "text": "\udc00\ud800"}]}]}',
            "messages[0].content[0].text",
        ),
        (r'{"messages": [{"role": "user", "content": "x"}], "metadata": {"\ud800": 1}}', "metadata"),
        (r'{"messages": [{"role": "user", "content": "\ud800"}]', "body"),
        ("[" * 100_000 + r'"\ud800"', "body"),
    ],
    ids=["string", "part", "name", "cut", "deep"],
)
async def test_half_a_surrogate_pair_is_refused_by_name(body: str, param: str, http: httpx.AsyncClient) -> None:
    """It is no character, so the field that has it is told; both halves are one."""
    assert error(await http.post(PATH, content=body.encode()))[:3] == (400, "invalid_request_error", param)
    whole = body.replace(r"\ud800", r"\ud83d\ude00").replace(r"\udc00", "")
    if param != "body":
        assert (await http.post(PATH, content=whole.encode())).status_code == 200


@pytest.mark.parametrize(
    ("url", "status", "code"),
    [
        ("https://example.org/cat.png", 400, "field_unimplemented"),
        (" HTTPS://example.org/cat.png", 400, "field_unimplemented"),
        ("file:///etc/passwd", 400, "field_invalid"),
        ("data:image/png;base64", 400, "field_invalid"),
        ("data:image/png;base64,!!!!", 400, "field_invalid"),
        ("data:image/png;base64,abcde", 400, "field_invalid"),
    ],
)
async def test_urls_that_are_not_served(url: str, status: int, code: str, http: httpx.AsyncClient) -> None:
    """Only data: URLs with base64 are taken; http(s) is not there yet, and says what to do instead."""
    body = {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]}
    response = await http.post(PATH, json=body)
    assert error(response) == (status, "invalid_request_error", "messages[0].content[0].image_url.url", code)
    assert "data: URL" in response.json()["error"]["message"] or "base64" in response.json()["error"]["message"]


async def test_errors_of_the_tiers_name_fields_of_the_json(http: httpx.AsyncClient) -> None:
    """Paths of the wire are turned back into those of the client's JSON, in `param` and in the message."""
    body = {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}, picture(b"rubbish")]}]}
    for stream in (False, True):
        response = await http.post(PATH, json={**body, "stream": stream})
        assert error(response) == (
            400,
            "invalid_request_error",
            "messages[0].content[1].image_url",
            "image_unreadable",
        )
        assert response.json()["error"]["message"].startswith("messages[0].content[1].image_url: ")
    assert error(await http.post(PATH, json={**HELLO, "top_p": 2}))[2] == "top_p"
    assert error(await http.post(PATH, json={"messages": []}))[2] == "messages"


async def test_an_image_over_its_limit(http: httpx.AsyncClient) -> None:
    """A file over its limit is a 413 with its path."""
    body = {"messages": [{"role": "user", "content": [picture(bytes((1 << 20) + 1))]}]}
    assert error(await http.post(PATH, json=body)) == (
        413,
        "invalid_request_error",
        "messages[0].content[0].image_url",
        "image_too_large",
    )


async def test_a_large_image(wire: httpx.AsyncClient, vision: FakeVision) -> None:
    """A file that takes several slices of base64 arrives byte for byte."""
    data = b"file" + bytes(range(256)) * 4000
    body = {"messages": [{"role": "user", "content": [picture(data)]}]}
    assert (await wire.post(PATH, json=body)).status_code == 200
    assert vision.calls[0].request.data == data


@pytest.mark.parametrize("announced", [True, False])
async def test_a_body_over_its_limit(announced: bool, wire: httpx.AsyncClient) -> None:
    """A body over the limit is a 413, whether its length was announced or not."""

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(5):
            yield bytes(1 << 20)

    content: Any = bytes(5 << 20) if announced else pieces()
    assert error(await wire.post(PATH, content=content)) == (413, "invalid_request_error", "body", "body_too_large")


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (ServiceError(Code.NOT_FOUND, "X", "x"), (404, "not_found_error", None)),
        (overloaded(Reason.QUEUE_FULL, "x", retry_after=1.2), (429, "rate_limit_error", "2")),
        (ServiceError(Code.RESOURCE_EXHAUSTED, "X", "x"), (413, "invalid_request_error", None)),
        (ServiceError(Code.RESOURCE_EXHAUSTED, "PROMPT_TOO_LONG", "x"), (400, "invalid_request_error", None)),
        (ServiceError(Code.UNIMPLEMENTED, "X", "x"), (400, "invalid_request_error", None)),
        (ServiceError(Code.INTERNAL, "X", "x"), (500, "server_error", None)),
        (ServiceError(Code.FAILED_PRECONDITION, "X", "x"), (503, "server_error", None)),
        (down(), (503, "server_error", "1")),
        (ServiceError(Code.DEADLINE_EXCEEDED, "X", "x"), (504, "server_error", None)),
    ],
)
async def test_statuses(
    failure: ServiceError, expected: tuple[int, str, str | None], http: httpx.AsyncClient, decoder: FakeDecoder
) -> None:
    """Each kind of failure has its HTTP status, and Retry-After where waiting helps."""

    async def hook(call: GenerateCall, stage: str) -> None:
        raise failure

    decoder.hook = hook
    response = await http.post(PATH, json={**HELLO, "stream": True})
    assert (*error(response)[:2], response.headers.get("retry-after")) == expected
    # OpenAI's SDKs send again what they got 429 or 5xx for, unless they are told not to.
    assert response.headers.get("x-should-retry") == ("false" if expected[0] in (400, 404, 413) else None)


async def test_a_stream_that_fails_midway_says_so(wire: httpx.AsyncClient, decoder: FakeDecoder) -> None:
    """The tokens so far arrive, then an error event, and no `[DONE]`."""

    async def hook(call: GenerateCall, stage: str) -> None:
        if stage == "finish":
            raise down()

    decoder.hook = hook
    response = await wire.post(PATH, json={**HELLO, "stream": True})
    assert response.status_code == 200
    *chunks, last = events(response.text)
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks) == "A red circle."
    assert last["error"]["code"] == "decoder_unavailable"


async def test_an_unexpected_failure_tells_nothing(wire: httpx.AsyncClient, vision: FakeVision) -> None:
    """A bug is a 500 without its text, and the next request works."""

    async def hook(call: EncodeCall, chunk: int) -> None:
        raise RuntimeError("a secret")

    vision.hook = hook
    response = await wire.post(PATH, json={"messages": [{"role": "user", "content": [picture(b"file one")]}]})
    assert error(response)[0] == 500
    assert "secret" not in response.text
    assert (await wire.post(PATH, json=HELLO)).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_frees_both_tiers(
    stream: bool, wire: httpx.AsyncClient, vision: FakeVision, decoder: FakeDecoder
) -> None:
    """Closing the connection ends the encode and the generation, streamed or not."""
    on_its_way = asyncio.Event()

    async def hook(call: EncodeCall, chunk: int) -> None:
        if chunk == 2:
            on_its_way.set()
            await asyncio.Event().wait()

    vision.hook = hook
    body = {"messages": [{"role": "user", "content": [picture(b"file one")]}], "stream": stream}
    asking = asyncio.create_task(wire.post(PATH, json=body))
    await on_its_way.wait()
    asking.cancel()
    await vision.calls[0].ended.wait()
    await decoder.calls[0].ended.wait()
    assert not decoder.calls[0].complete


async def test_a_client_that_leaves_midway_frees_the_decoder(wire: httpx.AsyncClient, decoder: FakeDecoder) -> None:
    """Closing the connection of a running stream ends the generation."""

    async def hook(call: GenerateCall, stage: str) -> None:
        if stage == "finish":
            await asyncio.Event().wait()

    decoder.hook = hook
    async with wire.stream("POST", PATH, json={**HELLO, "stream": True}) as response:
        async for line in response.aiter_lines():
            if "circle" in line:
                break
    await decoder.calls[0].ended.wait()
    assert not decoder.calls[0].complete


async def test_too_many_requests_at_once(wire: httpx.AsyncClient, decoder: FakeDecoder) -> None:
    """Requests over the limit are refused at once with 429, and served again when there is room."""
    full, goes_on = asyncio.Event(), asyncio.Event()

    async def hook(call: GenerateCall, stage: str) -> None:
        if len(decoder.calls) == 3:
            full.set()
        await goes_on.wait()

    decoder.hook = hook
    asking = [asyncio.create_task(wire.post(PATH, json=HELLO)) for _ in range(3)]
    await full.wait()
    response = await wire.post(PATH, json=HELLO)
    assert error(response)[:2] == (429, "rate_limit_error")
    assert response.headers["retry-after"] == "1"
    goes_on.set()
    assert {response.status_code for response in await asyncio.gather(*asking)} == {200}
    assert (await wire.post(PATH, json=HELLO)).status_code == 200


async def test_what_is_not_there(http: httpx.AsyncClient) -> None:
    """Unknown paths and methods get OpenAI's JSON, too."""
    assert error(await http.get("/v1/engines"))[:2] == (404, "not_found_error")
    response = await http.get(PATH)
    assert error(response)[0] == 405
    assert "POST" in response.headers["allow"]


async def test_a_bad_request_id(http: httpx.AsyncClient) -> None:
    """An id that is too long is a 400."""
    response = await http.post(PATH, json=HELLO, headers={"x-request-id": "x" * 129})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "x-request-id"


async def test_a_running_stream_ends_in_the_grace_period(vision: FakeVision, decoder: FakeDecoder) -> None:
    """A server that is told to stop lets a running answer finish."""
    goes_on = asyncio.Event()

    async def hook(call: GenerateCall, stage: str) -> None:
        if stage == "finish":
            await goes_on.wait()

    decoder.hook = hook
    conductor = Conductor(InProcessVision(vision), InProcessDecoder(decoder), RequestLimits(), Policy())
    server = HttpServer(create_app(conductor, seconds=30, max_body_bytes=1 << 20, max_requests=3), grace_seconds=30)
    port = await server.start("127.0.0.1", 0)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False) as client:
        body = {**HELLO, "stream": True}
        async with client.stream("POST", PATH, json=body) as response:
            lines = response.aiter_lines()
            await anext(lines)
            stopping = asyncio.create_task(server.stop())
            await asyncio.sleep(0)
            goes_on.set()
            rest = [line async for line in lines]
    assert "data: [DONE]" in rest
    await stopping
