"""`/v1/completions`, `/tokenize`, `/detokenize`, `/metrics` and several answers, in front of fake tiers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from gateway.conductor import Conductor, Policy
from gateway.http import create_app
from gateway.http.stream import Pace
from gateway.media import RequestLimits
from serving.errors import Reason, invalid, overloaded
from tests.gateway.conftest import AT_ONCE
from tests.gateway.fakes import MODEL, FakeDecoder, FakeVision, GenerateCall, InProcessDecoder, InProcessVision
from tests.gateway.openai_json import HELLO, PATH, ask, error, events, picture
from vlm.v1 import chat_pb2

TEXT = "/v1/completions"


@pytest.fixture
async def http(request: pytest.FixtureRequest, vision: FakeVision, decoder: FakeDecoder) -> AsyncIterator[Any]:
    """A client of the application; a parameter turns metrics on."""
    conductor = Conductor(InProcessVision(vision), InProcessDecoder(decoder), RequestLimits(), Policy(backoff=AT_ONCE))
    pace = Pace(status_seconds=60, comment_seconds=60)
    metrics = getattr(request, "param", False)
    app = create_app(conductor, seconds=30, max_body_bytes=1 << 20, max_requests=9, pace=pace, metrics=metrics)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway", timeout=30) as client:
        yield client


def prompts(decoder: FakeDecoder) -> list[chat_pb2.Prompt]:
    """What the decoder was to go on with."""
    return [call.open.prompt for call in decoder.calls if call.open is not None]


async def test_a_completion(http: httpx.AsyncClient, decoder: FakeDecoder) -> None:
    """A prompt without messages, and an answer in the legacy shape; 16 tokens unless more are asked for."""
    body = (await http.post(TEXT, json={"model": MODEL, "prompt": "Once", "seed": 3})).json()
    assert (body["object"], body["model"]) == ("text_completion", MODEL)
    assert body["id"].startswith("cmpl-")
    assert body["choices"] == [{"index": 0, "text": "A red circle.", "logprobs": None, "finish_reason": "stop"}]
    assert body["usage"]["total_tokens"] == 10
    assert prompts(decoder) == [chat_pb2.Prompt(text="Once")]
    opening = decoder.calls[0].open
    assert opening is not None
    assert not opening.messages
    assert (opening.generation.max_tokens, opening.generation.seed) == (16, 3)
    await http.post(TEXT, json={"prompt": "Once", "max_tokens": 5, "parse_special": True})
    assert decoder.calls[1].open is not None
    assert decoder.calls[1].open.generation.max_tokens == 5
    assert prompts(decoder)[1] == chat_pb2.Prompt(text="Once", parse_special=True)


@pytest.mark.parametrize("stream", [False, True])
async def test_several_prompts_are_numbered(http: httpx.AsyncClient, decoder: FakeDecoder, stream: bool) -> None:
    """Texts and token ids, more than are answered at once, each with `n` answers: all of them come, and one usage."""
    sent = ["a", [5, 6], "b", "c", "d"]
    body = {"prompt": sent, "n": 2, "stream": stream, "stream_options": {"include_usage": True}}
    response = await http.post(TEXT, json=body)
    if stream:
        *chunks, last, done = events(response.text)
        assert (done, last["choices"]) == ("[DONE]", [])
        usage = last["usage"]
        texts = [""] * 10
        for chunk in chunks:
            (choice,) = chunk["choices"]
            texts[choice["index"]] += choice["text"]
        ends = [c["index"] for chunk in chunks for c in chunk["choices"] if c["finish_reason"] == "stop"]
        assert sorted(ends) == list(range(10))
    else:
        usage = response.json()["usage"]
        texts = [choice["text"] for choice in response.json()["choices"]]
        assert [choice["index"] for choice in response.json()["choices"]] == list(range(10))
    assert texts == ["A red circle.", "A red circle. (1)"] * 5
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (5 * 7, 10 * 3)
    asked = [prompt.text or list(prompt.token_ids.values) for prompt in prompts(decoder)]
    assert sorted(asked, key=str) == sorted(sent, key=str)


async def test_legacy_log_probabilities(http: httpx.AsyncClient, decoder: FakeDecoder) -> None:
    """Four lists side by side; an offset counts characters, also where a character takes two tokens."""

    def position(raw: bytes, text: str, logprob: float) -> list[chat_pb2.PositionLogprobs]:
        token = chat_pb2.TokenLogprob(text=text, raw=raw, logprob=logprob)
        return [chat_pb2.PositionLogprobs(chosen=token, top=[token])]

    decoder.said = [
        ("", position(b"\xc3", "", -0.5)),
        ("é", position(b"\xa9", "", -1)),
        (" a", position(b" a", " a", -2)),
        ("", position(b"", "<|im_end|>", -3)),
    ]
    (choice,) = (await http.post(TEXT, json={"prompt": "x", "logprobs": 1})).json()["choices"]
    assert choice["logprobs"] == {
        "tokens": ["\\xc3", "\\xa9", " a"],
        "token_logprobs": [-0.5, -1, -2],
        "top_logprobs": [{"\\xc3": -0.5}, {"\\xa9": -1}, {" a": -2}],
        "text_offset": [0, 0, 1],
    }
    *chunks, _ = events((await http.post(TEXT, json={"prompt": "x", "logprobs": 1, "stream": True})).text)
    told = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    assert [offset for each in told if each for offset in each["text_offset"]] == [0, 0, 1]
    assert prompts(decoder)[0].text == "x"


@pytest.mark.parametrize(
    ("more", "status", "param"),
    [
        ({"echo": True}, 400, "echo"),
        ({"suffix": "x"}, 400, "suffix"),
        ({"best_of": 3}, 400, "best_of"),
        ({"prompt": []}, 400, "prompt"),
        ({"prompt": ["a", 5]}, 400, "prompt"),
        ({"prompt": [-1]}, 400, "prompt"),
        ({"prompt": {"a": 1}}, 400, "prompt"),
        ({"prompt": ["a"] * 65}, 400, "prompt"),
        ({"n": -1}, 400, "n"),
    ],
)
async def test_completions_refuse_by_name(
    http: httpx.AsyncClient, more: dict[str, Any], status: int, param: str
) -> None:
    """What is not served, and what is no prompt."""
    assert error(await http.post(TEXT, json={"prompt": "x", **more}))[:3] == (status, "invalid_request_error", param)


async def test_a_prompt_that_fails_fails_all(http: httpx.AsyncClient, decoder: FakeDecoder) -> None:
    """With the decoder's error, its fields named as in the JSON, and no call is left behind."""

    async def hook(call: GenerateCall, stage: str) -> None:
        if stage == "start" and call.open is not None and call.open.prompt.text == "c":
            raise invalid("prompt.text", "has no token; send at least one")

    decoder.hook = hook
    answer = await http.post(TEXT, json={"prompt": ["a", "b", "c", "d", "e", "f"]})
    assert error(answer)[:3] == (400, "invalid_request_error", "prompt")
    assert all(call.ended.is_set() for call in decoder.calls)

    async def full(call: GenerateCall, stage: str) -> None:
        raise overloaded(Reason.QUEUE_FULL, "the queue is full", retry_after=2.0)

    decoder.hook = full
    assert (await http.post(TEXT, json={"prompt": ["a", "b"]})).status_code == 429


@pytest.mark.parametrize("stream", [False, True])
async def test_several_answers(http: httpx.AsyncClient, decoder: FakeDecoder, stream: bool) -> None:
    """One call of the decoder; choices have their numbers, and the prompt is counted once."""
    body = {**HELLO, "n": 3, "stream": stream, "stream_options": {"include_usage": True}}
    response = await http.post(PATH, json=body)
    expected = ["A red circle.", "A red circle. (1)", "A red circle. (2)"]
    if stream:
        *chunks, last, done = events(response.text)
        assert done == "[DONE]"
        usage = last["usage"]
        texts = [""] * 3
        roles = []
        for chunk in chunks:
            (choice,) = chunk["choices"]
            texts[choice["index"]] += choice["delta"].get("content", "")
            if "role" in choice["delta"]:
                roles.append(choice["index"])
        assert roles == [0, 1, 2]
        order = [chunk["choices"][0]["index"] for chunk in chunks[3:]]
        assert order != sorted(order)  # they come in turns
    else:
        usage = response.json()["usage"]
        choices = response.json()["choices"]
        assert [choice["index"] for choice in choices] == [0, 1, 2]
        texts = [choice["message"]["content"] for choice in choices]
    assert texts == expected
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (7, 9)
    assert len(decoder.calls) == 1
    assert decoder.calls[0].open is not None
    assert decoder.calls[0].open.generation.n == 3


async def test_too_many_answers_are_the_decoders_to_refuse(http: httpx.AsyncClient, decoder: FakeDecoder) -> None:
    """By the name of the JSON."""

    async def hook(call: GenerateCall, stage: str) -> None:
        raise invalid("generation.n", "is 9 and must be from 1 to 8")

    decoder.hook = hook
    assert error(await http.post(PATH, json={**HELLO, "n": 9}))[2] == "n"
    # Nothing is made for each of them before.
    assert error(await http.post(PATH, json={**HELLO, "n": 4_000_000_000}))[2] == "n"
    assert error(await http.post(TEXT, json={"prompt": "x", "n": 4_000_000_000}))[2] == "n"


async def test_tokenize_a_conversation(http: httpx.AsyncClient, decoder: FakeDecoder, vision: FakeVision) -> None:
    """The tokens that a chat would have, with its media and tools, which are described and not encoded."""
    tool = {"type": "function", "function": {"name": "f"}}
    sent = ask({"type": "text", "text": "hi"}, picture(b"file one"), tools=[tool], return_token_strs=True)
    body = (await http.post("/tokenize", json=sent)).json()
    assert body == {
        "count": 18,
        "max_model_len": 4096,
        "tokens": [1, 2, 3],
        "token_strs": ["a", "\\xe2", "<|im_end|>"],
    }
    (counted,) = decoder.counted
    assert [tool.name for tool in counted.tools] == ["f"]
    assert (len(vision.described), vision.calls) == (1, [])
    plain = (await http.post("/tokenize", json=HELLO)).json()
    assert plain["token_strs"] is None
    assert not decoder.counted[1].return_token_texts


async def test_tokenize_a_prompt(http: httpx.AsyncClient, decoder: FakeDecoder) -> None:
    """As text; control tokens in it are parsed where it is asked for."""
    assert (await http.post("/tokenize", json={"prompt": "a<|im_end|>", "add_special_tokens": True})).status_code == 200
    await http.post("/tokenize", json={"prompt": "b", "parse_special": True})
    first, second = decoder.counted
    assert (first.prompt, len(first.messages)) == (chat_pb2.Prompt(text="a<|im_end|>"), 0)
    assert second.prompt == chat_pb2.Prompt(text="b", parse_special=True)
    for both in ({}, {**HELLO, "prompt": "x"}):
        assert error(await http.post("/tokenize", json=both))[:3] == (400, "invalid_request_error", "messages")


async def test_detokenize(http: httpx.AsyncClient) -> None:
    """Tokens become text; one that is not the model's is named as in the JSON."""
    assert (await http.post("/detokenize", json={"model": MODEL, "tokens": [5, 6]})).json() == {"prompt": "5 6"}
    assert error(await http.post("/detokenize", json={"tokens": [5, 2000]}))[2] == "tokens[1]"
    assert error(await http.post("/detokenize", json={"tokens": "x"}))[2] == "tokens"


@pytest.mark.parametrize("http", [True], indirect=True)
async def test_metrics_by_setting(http: httpx.AsyncClient) -> None:
    """The page of Prometheus."""
    await http.get("/healthz")
    response = await http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    assert "triptych_" in response.text


async def test_no_metrics_by_default(http: httpx.AsyncClient) -> None:
    """The door is public: nobody reads them unless a setting says so."""
    assert error(await http.get("/metrics"))[0] == 404
