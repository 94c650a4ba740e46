"""What a conversation is made of: messages, strings, files, OpenAI's dictionaries, tools."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pydantic
import pytest

import triptych
from tests.triptych.scripted import Context, playing
from triptych.messages import to_messages, to_wire
from triptych.options import chat_request, count_request
from vlm.v1 import chat_pb2, gateway_pb2

URL = f"data:image/png;base64,{base64.b64encode(b'picture').decode()}"
PICTURE = triptych.Image(b"picture")


def _kinds(*parts: Any) -> list[str | None]:
    (wire,) = to_wire([triptych.user(*parts)])
    return [part.WhichOneof("part") for part in wire.parts]


def test_parts_become_media_by_their_kind(tmp_path: Path) -> None:
    """Strings are text; a file is a video if its name says so, and everything else is an image."""
    (tmp_path / "clip.MP4").write_bytes(b"clip")
    (tmp_path / "a.png").write_bytes(b"picture")
    parts = [tmp_path / "clip.MP4", tmp_path / "a.png", b"raw", io.BytesIO(b"x"), np.zeros((2, 2), np.uint8), "a.mp4"]
    assert _kinds(*parts) == ["video", "image", "image", "image", "image", "text"]
    with (tmp_path / "clip.MP4").open("rb") as file:
        assert _kinds(file) == ["video"]
    with pytest.raises(FileNotFoundError):
        triptych.user(tmp_path / "none.png")


def test_a_string_or_a_message_is_a_conversation() -> None:
    """Alone, or among others."""
    question = triptych.user("What?")
    for given in ("What?", question, ["What?"], [question], {"role": "user", "content": "What?"}, iter([question])):
        assert to_messages(given) == [question]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"role": "developer", "content": "Be brief.", "name": "x"}, triptych.system("Be brief.")),
        (
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": URL, "detail": "low"}},
                    {"type": "image_url", "image_url": {"url": URL, "detail": "auto"}},
                    {"type": "video_url", "video_url": {"url": URL}},
                    {"type": "image", "image": b"picture"},
                    {"type": "text", "text": "What?"},
                ],
            },
            triptych.user(
                triptych.Image(b"picture", detail="low"), PICTURE, triptych.Video(b"picture"), PICTURE, "What?"
            ),
        ),
        (
            {
                "role": "assistant",
                "content": None,
                "reasoning_content": "Hm.",
                "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}],
            },
            triptych.assistant("", reasoning="Hm.", tool_calls=[triptych.ToolCall("c", "f", '{"a":1}')]),
        ),
        ({"role": "tool", "tool_call_id": "c", "content": "sunny"}, triptych.tool("c", "sunny")),
    ],
    ids=["system", "media", "calls", "result"],
)
def test_a_dictionary_of_openais_is_a_message(given: dict[str, Any], message: triptych.Message) -> None:
    """With its media, its calls and its reasoning."""
    assert to_messages([given]) == [message]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"content": "x"}, r"messages\[0\].role is None"),
        ({"role": "user", "content": 5}, r"messages\[0\].content is int"),
        ({"role": "user", "content": [{"type": "audio"}]}, r"content\[0\].type is 'audio'"),
        ({"role": "user", "content": [{"type": "image", "image": "/etc/hostname"}]}, "send a data: URL"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x/"}}]}, "send a data: URL"),
        ({"role": "user", "content": [{"type": "image_url"}]}, r"content\[0\]"),
        ({"role": "user", "content": [{"type": "text"}]}, r"content\[0\]"),
        ({"role": "assistant", "tool_calls": [{"id": "c"}]}, r"tool_calls\[0\] must be"),
        ({"role": "narrator", "content": "x"}, "'narrator' is unknown"),
    ],
)
def test_a_dictionary_that_is_no_message_is_refused_with_its_place(given: dict[str, Any], said: str) -> None:
    """A string is never a path: it may come from outside."""
    with pytest.raises(ValueError, match=said):
        chat_request([given], {})


@pytest.mark.parametrize("given", [5, None, [5], [Path("a.png")], b"x"])
def test_what_is_no_conversation_is_refused(given: Any) -> None:
    """Before anything is sent."""
    with pytest.raises(TypeError):
        to_messages(given)


def weather(city: Annotated[str, pydantic.Field(description="Its name.")], days: int = 1) -> str:
    """Tell the weather of a city."""
    return f"{city}: sunny for {days} days"


class Search(pydantic.BaseModel):
    """Search the shop."""

    words: list[str]
    order: Literal["price", "name"] = "price"


AS_DICTIONARY = {"type": "function", "function": {"name": "now", "description": "The time."}}


def test_functions_and_types_are_tools() -> None:
    """Annotations are the schema, the docstring is the description; counts have the tools, too."""
    tools = [weather, Search, triptych.Tool("stop", "Stops.", {"type": "object"}, strict=True), AS_DICTIONARY]
    request = chat_request("x", {"tools": tools})
    by_function, by_type, given, dictionary = request.tools
    assert (by_function.name, by_function.description) == ("weather", "Tell the weather of a city.")
    schema = json.loads(by_function.parameters)
    assert schema["properties"] == {
        "city": {"description": "Its name.", "title": "City", "type": "string"},
        "days": {"default": 1, "title": "Days", "type": "integer"},
    }
    assert (schema["required"], schema["additionalProperties"]) == (["city"], False)
    assert (by_type.name, by_type.description) == ("Search", "Search the shop.")
    assert json.loads(by_type.parameters)["properties"]["order"]["enum"] == ["price", "name"]
    assert given == chat_pb2.Tool(name="stop", description="Stops.", parameters='{"type": "object"}', strict=True)
    assert dictionary == chat_pb2.Tool(name="now", description="The time.")
    assert count_request("x", {"tools": tools}).tools == request.tools
    assert triptych.Tool.of(weather, name="w", description="W.", strict=True).name == "w"


def _positional(x: int, /) -> None: ...


@pytest.mark.parametrize("tools", [[5], [{"name": 5, "function": 3}], [_positional], weather, "weather", 5])
def test_what_is_no_tool_is_a_type_error(tools: Any) -> None:
    """Also a function that cannot be called by names, and a tool outside a list."""
    with pytest.raises(TypeError):
        chat_request("x", {"tools": tools})


@pytest.mark.parametrize(
    ("options", "wire"),
    [
        ({}, None),
        ({"tool_choice": "auto"}, chat_pb2.ToolChoice(auto=True)),
        ({"tool_choice": "none"}, chat_pb2.ToolChoice(none=True)),
        ({"tool_choice": "required"}, chat_pb2.ToolChoice(required=True)),
        ({"tool_choice": "weather"}, chat_pb2.ToolChoice(name="weather")),
        ({"tool_choice": weather}, chat_pb2.ToolChoice(name="weather")),
        ({"tool_choice": triptych.Tool("weather")}, chat_pb2.ToolChoice(name="weather")),
        ({"parallel_tool_calls": False}, chat_pb2.ToolChoice(one_call=True)),
        ({"parallel_tool_calls": True}, chat_pb2.ToolChoice()),
    ],
)
def test_the_choice_of_a_tool(options: Any, wire: chat_pb2.ToolChoice | None) -> None:
    """By word, by name, or by the tool."""
    request = chat_request("x", options)
    assert (request.tool_choice if request.HasField("tool_choice") else None) == wire


SCHEMA = {"type": "object", "properties": {"z": {}, "a": {}}}


@pytest.mark.parametrize(
    ("options", "form"),
    [
        ({"response_format": SCHEMA}, chat_pb2.ResponseFormat(json_schema=json.dumps(SCHEMA))),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}},
            chat_pb2.ResponseFormat(json_schema=json.dumps(SCHEMA)),
        ),
        ({"response_format": {"type": "json_object"}}, chat_pb2.ResponseFormat(json_object=True)),
        ({"response_format": {"type": "text"}}, None),
        ({"regex": "a+"}, chat_pb2.ResponseFormat(regex="a+")),
        ({"grammar": 'start: "a"'}, chat_pb2.ResponseFormat(grammar='start: "a"')),
        ({"choice": ["yes", "no"]}, chat_pb2.ResponseFormat(choice=chat_pb2.Choice(values=["yes", "no"]))),
        ({"regex": None}, None),
    ],
)
def test_forms_of_an_answer(options: Any, form: chat_pb2.ResponseFormat | None) -> None:
    """Each has its field, and a schema keeps the order of its keys."""
    generation = chat_request("x", options).generation
    assert (generation.response_format if generation.HasField("response_format") else None) == form


@pytest.mark.parametrize(
    "options",
    [
        {"regex": "a", "choice": ["b"]},
        {"choice": "yes"},
        {"choice": [1]},
        {"regex": 5},
        {"response_format": {"type": "json_schema"}},
        {"response_format": 5},
    ],
)
def test_a_wrong_form_is_a_type_error(options: Any) -> None:
    """Before anything is sent."""
    with pytest.raises(TypeError):
        chat_request("x", options)


def test_a_round_trip_with_a_tool() -> None:
    """The call comes as events and in the answer, and goes back with its reasoning and its result."""

    def play(request: gateway_pb2.ChatRequest, context: Context) -> Any:
        yield chat_pb2.ChatEvent(delta=chat_pb2.Delta(reasoning="Where?"))
        for call in (
            chat_pb2.ToolCallDelta(index=0, id="c1", name="weather", arguments='{"city": "Bonn"'),
            chat_pb2.ToolCallDelta(index=0, arguments=', "days": 2}'),
        ):
            yield chat_pb2.ChatEvent(tool_call=call)
        yield chat_pb2.ChatEvent(finished=chat_pb2.Finished(reason=chat_pb2.FINISH_REASON_TOOL_CALLS))

    with playing(play) as gateway, triptych.Client(gateway.address) as client:
        events = list(client.chat("How is it in Bonn?", tools=[weather]))
        assert triptych.ToolCallDelta(0, "", "", ', "days": 2}') in events
        answer = client.answer("How is it in Bonn?", tools=[weather])
        (call,) = answer.tool_calls
        assert (answer.finish_reason, answer.text) == ("tool_calls", "")
        history = ["How is it in Bonn?", triptych.assistant(answer), triptych.tool(call, weather(**call.parse()))]
        client.answer(history, tools=[weather])
        _, said, result = gateway.chats[-1].messages
    assert (said.role, said.reasoning) == (chat_pb2.ROLE_ASSISTANT, "Where?")
    sent = chat_pb2.ToolCall(id="c1", name="weather", arguments='{"city": "Bonn", "days": 2}')
    assert list(said.parts) == [chat_pb2.Part(tool_call=sent)]
    assert (result.role, result.tool_call_id) == (chat_pb2.ROLE_TOOL, "c1")
    assert result.parts[0].text == "Bonn: sunny for 2 days"


def test_results_are_text_media_or_json() -> None:
    """What is neither text nor a medium is written as JSON."""
    parts = triptych.tool("c", "text", PICTURE, {"ä": [1, None]}, 2.5, None, Search(words=["a"])).parts
    assert parts == ("text", PICTURE, '{"ä": [1, null]}', "2.5", "null", '{"words":["a"],"order":"price"}')


@pytest.mark.parametrize("arguments", ['{"city": "Bo', "[1]"])
def test_arguments_that_were_cut_are_an_error(arguments: str) -> None:
    """Not a traceback of the JSON parser."""
    with pytest.raises(triptych.AnswerError, match="weather are no JSON object"):
        triptych.ToolCall("c", "weather", arguments).parse()
