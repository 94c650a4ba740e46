"""What clients of OpenAI, vLLM and llama.cpp send beside what is served: read, ignored by name, or refused."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from gateway.conductor import Conductor, Policy
from gateway.http import create_app, data_url
from gateway.http.ignored import IGNORED_HEADER
from gateway.http.stream import Pace
from gateway.http.translate import JsonNames, parse, to_chat
from gateway.http.unserved import ignored_fields
from gateway.media import RequestLimits
from gateway.settings import GatewaySettings
from serving.errors import ServiceError
from tests.gateway.conftest import AT_ONCE
from tests.gateway.fakes import MODEL, FakeDecoder, FakeVision, InProcessDecoder, InProcessVision
from tests.gateway.openai_json import HELLO, PATH, ask, error, picture
from vlm.v1 import chat_pb2, gateway_pb2

LIMIT = 1 << 20
PAGE = "http://localhost:3000"
FILE = bytes(range(256)) * 3 + b"\x01"


def say(role: str, content: Any, **more: Any) -> dict[str, Any]:
    """A message."""
    return {"role": role, "content": content, **more}


def translated(body: dict[str, Any]) -> gateway_pb2.ChatRequest:
    """The request on the wire."""
    return to_chat(parse(json.dumps(body).encode()), "r-1")


def ignored(body: dict[str, Any]) -> list[str]:
    """The fields that are ignored."""
    return ignored_fields(parse(json.dumps(body).encode()))


@pytest.fixture
async def http(vision: FakeVision, decoder: FakeDecoder) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application."""
    conductor = Conductor(InProcessVision(vision), InProcessDecoder(decoder), RequestLimits(), Policy(backoff=AT_ONCE))
    app = create_app(
        conductor,
        seconds=30,
        max_body_bytes=LIMIT,
        max_requests=3,
        pace=Pace(status_seconds=60, comment_seconds=60),
        cors_origins=[PAGE],
    )
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway", timeout=30) as client:
        yield client


@pytest.mark.parametrize("stream", [True, False])
async def test_unknown_fields_are_ignored_by_name(http: httpx.AsyncClient, stream: bool) -> None:
    """They are named in a header, wherever they are, and once in the log."""
    body = {
        "messages": [
            say("user", [{"type": "text", "text": "Hello", "cache_control": {"type": "ephemeral"}}], name="A")
        ],
        "colour": 1,
        "service_tier": "flex",
        "user": None,
        "stream": stream,
    }
    with capture_logs() as logs:
        answers = [await http.post(PATH, json=body) for _ in range(2)]
    assert {answer.status_code for answer in answers} == {200}
    names = "colour, service_tier, messages[0].name, messages[0].content[0].cache_control"
    assert [answer.headers[IGNORED_HEADER] for answer in answers] == [names, names]
    logged = [line["field"] for line in logs if line["event"] == "field of the request is ignored"]
    assert sorted(logged) == ["colour", "messages[].content[].cache_control", "messages[].name", "service_tier"]


async def test_a_request_without_unknown_fields_has_no_such_header(http: httpx.AsyncClient) -> None:
    """Fields with values that ask for nothing are not named."""
    response = await http.post(PATH, json={**HELLO, "n": 1, "tools": [], "logprobs": None, "min_tokens": 0})
    assert response.status_code == 200
    assert IGNORED_HEADER not in response.headers


async def test_names_from_clients_cannot_write_headers(http: httpx.AsyncClient) -> None:
    """Line breaks, letters of other alphabets and long names reach no header as they are."""
    body = {**HELLO, "a\r\nset-cookie: x": 1, "größe": 1, "x" * 500: 1, **{f"f{i}": 1 for i in range(50)}}
    response = await http.post(PATH, json=body)
    assert response.status_code == 200
    value = response.headers[IGNORED_HEADER]
    assert "a%0D%0Aset-cookie:%20x, gr%C3%B6%C3%9Fe, " + "x" * 64 + ", f0" in value
    assert value.endswith("and 37 more")
    assert "set-cookie" not in response.headers
    response = await http.post(PATH, json={**HELLO, "blank ": 1})
    assert response.headers[IGNORED_HEADER] == "blank%20"  # HTTP allows no value that ends with a blank


def test_values_that_ask_for_nothing_pass() -> None:
    """What front ends of vLLM, SGLang and llama.cpp send by themselves is neither refused nor named."""
    assert not ignored(
        {
            **HELLO,
            "chat_template_kwargs": {},
            "stop_token_ids": [],
            "skip_special_tokens": True,
            "ignore_eos": False,
            "min_tokens": 0,
            "add_generation_prompt": True,
            "continue_final_message": False,
            "structured_outputs": None,
            "guided_json": None,
            "use_beam_search": False,
            "length_penalty": 1.0,
            "best_of": 1,
            "echo": False,
            "return_token_ids": None,
            "stream_options": {"include_usage": True, "continuous_usage_stats": False},
        }
    )


@pytest.mark.parametrize(
    ("sent", "seed"),
    [(-1, None), (0, 0), (1 << 31, 1 << 31), ((1 << 63) - 1, (1 << 63) - 1), (-2, (1 << 64) - 2), (7.0, 7)],
)
def test_seeds(sent: float, seed: int | None) -> None:
    """Any integer of 64 bits is a seed; -1 is none."""
    generation = translated({**HELLO, "seed": sent}).generation
    assert (generation.seed if generation.HasField("seed") else None) == seed


def test_numbers_that_mean_no_limit() -> None:
    """-1 tokens are unset, top_k -1 is 0, top_p 0 leaves the likeliest token, an empty stop string is none."""
    generation = translated({**HELLO, "max_tokens": -1, "top_k": -1, "top_p": 0, "stop": ["", "x"]}).generation
    assert not generation.HasField("max_tokens")
    assert (generation.top_k, list(generation.stop)) == (0, ["x"])
    assert 0 < generation.top_p < 1e-5


def test_messages_of_other_servers() -> None:
    """An assistant's turn comes back as other servers made it: without content, with a refusal, with annotations."""
    request = translated(
        {
            "model": None,
            "messages": [
                say("user", "a"),
                say("assistant", None, reasoning=None, annotations=[{"type": "url_citation"}]),
                say("user", "b"),
                say("assistant", "", refusal="I cannot."),
                say("user", "c"),
                say("assistant", [{"type": "refusal", "refusal": "No."}]),
                say("user", [{"type": "image_url", "image_url": "data:image/png;base64,QUJD"}]),
            ],
        }
    )
    assert request.model == ""
    assert [message.parts[0].text for message in request.messages[:6]] == ["a", "", "b", "I cannot.", "c", "No."]
    assert request.messages[6].parts[0].image.data == b"ABC"


def test_going_on_with_a_half_answer() -> None:
    """VLLM's two fields may say what a last message of the assistant says already."""
    half = {"messages": [say("user", "a"), say("assistant", "b")]}
    more = {**half, "continue_final_message": True, "add_generation_prompt": False}
    assert translated(half) == translated(more)
    assert translated(half).messages[1].role == chat_pb2.ROLE_ASSISTANT


@pytest.mark.parametrize(
    ("url", "data"),
    [
        ("data:image/png;base64,{}", FILE),
        (" \n data:image/png;base64,{}\n", FILE),
        ("DATA:image/png;BASE64 ,{}", FILE),
        ("data:;base64,{}", FILE),
        ("data:image/*;base64,{}", FILE),
        ('data:image/png;name="a b.png";charset=utf-8; base64, {}', FILE),
        ("data:image/png;base64,{}#fragment", FILE),
        ("data:image/svg+xml,%3Csvg/%3E", b"<svg/>"),
        ("data:,", b""),
    ],
)
def test_data_urls(url: str, data: bytes) -> None:
    """They are read as a browser reads them."""
    assert data_url.decode(url.format(base64.b64encode(FILE).decode())) == data


@given(data=st.binary(max_size=60), breaks=st.lists(st.integers(0, 80), max_size=4), padded=st.booleans())
def test_base64_of_any_length_with_breaks_and_without_padding(data: bytes, breaks: list[int], padded: bool) -> None:
    """Whitespace anywhere and missing padding change nothing; percent-encoding does not, either."""
    text = base64.b64encode(data).decode()
    if not padded:
        text = text.rstrip("=")
    for at in breaks:
        text = f"{text[:at]}\r\n\t{text[at:]}"
    assert data_url.decode(f"data:image/png;base64,{text}") == data
    quoted = text.replace("+", "%2B").replace("/", "%2f").replace("=", "%3D").replace("\n", "%0A")
    assert data_url.decode(f"data:image/png;base64,{quoted}") == data


def test_base64_in_slices() -> None:
    """A body that is longer than a slice is decoded whole."""
    data = FILE * 5000
    assert data_url.decode("data:;base64," + base64.encodebytes(data).decode()) == data


@pytest.mark.parametrize("text", ["abcde", "=", "abc==", "ab=c", "a_-b", "abcd=", "é", "a"])
def test_base64_that_a_browser_does_not_read(text: str) -> None:
    """It is refused."""
    with pytest.raises(ValueError, match="base64"):
        data_url.decode(f"data:image/png;base64,{text}")


JPEGS = [b"\xff\xd8\xff\xe0" + bytes(number) for number in range(4)]


@pytest.mark.parametrize("head", ["video/jpeg;base64", "VIDEO/JPEG; charset=x;base64", " video/jpeg ;base64"])
@pytest.mark.parametrize("comma", [",", "%2C", " ,\n"])
def test_frames_of_a_video(head: str, comma: str) -> None:
    """JPEGs in base64 with commas between, as vLLM takes them, are one JPEG after another."""
    body = comma.join(base64.b64encode(jpeg).decode() for jpeg in JPEGS)
    assert data_url.decode(f"data:{head},{body}") == b"".join(JPEGS)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("data:video/mp4;base64,AAAA,AAAA", "data:video/jpeg;base64,A,B,C"),
        ("data:video/jpeg;base64,/9j/,AAAA", "frame 2 is no JPEG"),
        ("data:video/jpeg;base64,/9j/,", "frame 2 is no JPEG"),
        ("data:video/jpeg;base64,/9j/,abcde", "not valid base64"),
    ],
)
def test_frames_that_are_none(url: str, message: str) -> None:
    """Other files have no commas, and frames are JPEGs; the refusal says what to send."""
    body = {"messages": [{"role": "user", "content": [{"type": "video_url", "video_url": {"url": url}}]}]}
    with pytest.raises(ServiceError) as refused:
        to_chat(parse(json.dumps(body).encode()), "r-1")
    assert refused.value.violations[0].field == "messages[0].content[0].video_url.url"
    assert message in refused.value.message


async def test_a_body_in_gzip(http: httpx.AsyncClient, decoder: FakeDecoder) -> None:
    """It is unpacked; a byte order mark is left out."""
    body = gzip.compress(b"\xef\xbb\xbf" + json.dumps(HELLO).encode())
    response = await http.post(PATH, content=body, headers={"content-encoding": "gzip"})
    assert response.status_code == 200
    assert response.json()["model"] == MODEL


@pytest.mark.parametrize(
    ("body", "encoding", "status"),
    [
        (gzip.compress(b" " * (LIMIT + 1)), "gzip", 413),  # a bomb: a thousandth of what it unfolds to
        (gzip.compress(b"{}" * 999, mtime=0)[:-9], "gzip", 400),
        (b"{}", "gzip", 400),
        (b"{}", "br", 400),
    ],
)
async def test_a_body_that_cannot_be_unpacked(http: httpx.AsyncClient, body: bytes, encoding: str, status: int) -> None:
    """It is refused, and unpacked no further than the limit."""
    response = await http.post(PATH, content=body, headers={"content-encoding": encoding})
    assert error(response)[0] == status


async def test_a_web_page_may_ask(http: httpx.AsyncClient) -> None:
    """The browser's preflight is answered for the origins that are allowed, and for no others."""
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}
    allowed = await http.options(PATH, headers={"origin": PAGE, **asked})
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == PAGE
    assert "authorization" in allowed.headers["access-control-allow-headers"]
    answer = await http.post(PATH, json=HELLO, headers={"origin": PAGE})
    assert answer.headers["access-control-allow-origin"] == PAGE
    other = await http.options(PATH, headers={"origin": "http://evil.example", **asked})
    assert other.status_code == 400
    assert "access-control-allow-origin" not in other.headers


def test_allowed_origins_are_checked() -> None:
    """The setting takes origins with commas between them; what is none is refused."""
    settings = GatewaySettings(cors_origins="http://localhost:3000, https://a.example")
    assert settings.allowed_origins == ("http://localhost:3000", "https://a.example")
    with pytest.raises(ValueError, match="is no origin"):
        GatewaySettings(cors_origins="localhost")


async def test_one_model(http: httpx.AsyncClient) -> None:
    """A model is described by its name; another is 404."""
    listed = (await http.get("/v1/models")).json()["data"]
    assert (await http.get(f"/v1/models/{MODEL}")).json() == listed[0]
    assert error(await http.get("/v1/models/org/other"))[:2] == (404, "not_found_error")
    assert (await http.get("/health")).status_code == 200


def test_parts_of_other_apis_say_what_to_send() -> None:
    """The refusal shows a part as it should be."""
    with pytest.raises(Exception, match=r'"image_url": \{"url": "data:image/png;base64,') as refused:
        translated(ask({"type": "input_image", "image_url": picture(b"x")["image_url"]["url"]}))
    assert "messages[0].content[0]" in str(refused.value)


SCHEMA = {"type": "object", "properties": {"b": {"type": "integer"}, "a": {}}, "required": ["b"]}
FORMAT = chat_pb2.ResponseFormat


@pytest.mark.parametrize(
    ("fields", "form", "name"),
    [
        ({"response_format": {"type": "text"}}, None, "response_format"),
        ({"response_format": {"type": "json_object"}}, FORMAT(json_object=True), "response_format"),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "strict": True, "schema": SCHEMA},
                }
            },
            FORMAT(json_schema=json.dumps(SCHEMA)),
            "response_format.json_schema.schema",
        ),
        ({"structured_outputs": {"regex": "a", "json": None}}, FORMAT(regex="a"), "structured_outputs.regex"),
        ({"structured_outputs": {"json_object": True}}, FORMAT(json_object=True), "structured_outputs.json_object"),
        ({"guided_json": SCHEMA}, FORMAT(json_schema=json.dumps(SCHEMA)), "guided_json"),
        ({"guided_json": json.dumps(SCHEMA)}, FORMAT(json_schema=json.dumps(SCHEMA)), "guided_json"),
        ({"guided_choice": ["a", "b"]}, FORMAT(choice=chat_pb2.Choice(values=["a", "b"])), "guided_choice"),
        ({"guided_grammar": "start: x", "guided_regex": ""}, FORMAT(grammar="start: x"), "guided_grammar"),
        ({"grammar": "root ::= x"}, FORMAT(grammar="root ::= x"), "grammar"),
        ({"json_schema": SCHEMA}, FORMAT(json_schema=json.dumps(SCHEMA)), "json_schema"),
    ],
)
def test_structured_output_by_every_name(fields: dict[str, Any], form: Any, name: str) -> None:
    """OpenAI's, vLLM's, SGLang's and llama.cpp's fields become one; errors name the one that was sent."""
    body = {**HELLO, **fields}
    generation = translated(body).generation
    assert (generation.response_format if generation.HasField("response_format") else None) == form
    assert JsonNames(parse(json.dumps(body).encode()))("generation.response_format.json_schema") == name


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": 5}}},
            "response_format.json_schema.schema",
        ),
        ({"guided_regex": "a", "response_format": {"type": "json_object"}}, "guided_regex"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs.choice"),
        ({"structured_outputs": {"regex": 5}}, "structured_outputs.regex"),
        ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag"),
        ({"guided_choice": "ab"}, "guided_choice"),
    ],
)
async def test_forms_that_cannot_be(http: httpx.AsyncClient, fields: dict[str, Any], param: str) -> None:
    """They are refused by name."""
    status, _, found, _ = error(await http.post(PATH, json={**HELLO, **fields}))
    assert (status, found) == (400, param)
