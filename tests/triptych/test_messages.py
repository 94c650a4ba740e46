"""Messages and events, to the wire and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import triptych
from triptych.events import from_wire, gather
from triptych.messages import to_wire
from triptych.options import ChatOptions, CountOptions, chat_request
from vlm.v1 import chat_pb2


def test_the_public_names() -> None:
    """What people import does not change by accident."""
    assert sorted(triptych.__all__) == [
        "Accepted",
        "Answer",
        "AnswerError",
        "AsyncClient",
        "Client",
        "Code",
        "Delta",
        "Event",
        "Finished",
        "Image",
        "MediaLayout",
        "Message",
        "PositionLogprobs",
        "Progress",
        "Prompt",
        "Started",
        "Timings",
        "Tls",
        "TokenCount",
        "TokenLogprob",
        "Tool",
        "ToolCall",
        "ToolCallDelta",
        "TriptychError",
        "Usage",
        "Video",
        "Violation",
        "assistant",
        "system",
        "tool",
        "user",
    ]
    assert all(hasattr(triptych, name) for name in triptych.__all__)


def test_messages_keep_roles_parts_and_order(tmp_path: Path) -> None:
    """Every kind of part goes to its own field, in the order in which it was said."""
    (tmp_path / "a.png").write_bytes(b"picture")
    wire = to_wire(
        [
            triptych.system("Be brief."),
            triptych.user(triptych.Image.open(tmp_path / "a.png"), "what?", triptych.Video(b"clip")),
            triptych.assistant("That."),
        ]
    )
    assert [message.role for message in wire] == [chat_pb2.ROLE_SYSTEM, chat_pb2.ROLE_USER, chat_pb2.ROLE_ASSISTANT]
    assert [part.WhichOneof("part") for part in wire[1].parts] == ["image", "text", "video"]
    assert wire[1].parts[0].image.data == b"picture"
    assert wire[1].parts[2].video.data == b"clip"


def test_a_wrong_role_or_part_is_refused_at_home() -> None:
    """What the wire has no word for never leaves the client."""
    with pytest.raises(ValueError, match="role 'narrator' is unknown"):
        to_wire([triptych.Message("narrator", ("hello",))])
    with pytest.raises(TypeError, match="a part is text, an Image, a Video, or what an Image is made of, not int"):
        triptych.user(5)  # type: ignore[arg-type]  # that is the mistake
    with pytest.raises(TypeError, match="not int"):
        to_wire([triptych.Message("user", (5,))])  # type: ignore[arg-type]


def test_events_come_back_as_values() -> None:
    """Started, deltas and finished become an answer with every field in its place."""
    events = [
        chat_pb2.ChatEvent(
            started=chat_pb2.Started(
                request_id="r", model="m", prompt_tokens=3, media_tokens=1, prompt_token_ids=[7, 8, 9], max_tokens=3
            )
        ),
        chat_pb2.ChatEvent(delta=chat_pb2.Delta(text="A ", token_ids=[1])),
        chat_pb2.ChatEvent(tool_call=chat_pb2.ToolCallDelta(index=1, id="c2", name="b", arguments="{}")),
        chat_pb2.ChatEvent(tool_call=chat_pb2.ToolCallDelta(index=0, id="c1", name="a", arguments='{"x"')),
        chat_pb2.ChatEvent(tool_call=chat_pb2.ToolCallDelta(index=0, arguments=": 1}")),
        chat_pb2.ChatEvent(delta=chat_pb2.Delta(text="cat.", token_ids=[2, 3])),
        chat_pb2.ChatEvent(
            finished=chat_pb2.Finished(
                reason=chat_pb2.FINISH_REASON_LENGTH,
                limit=chat_pb2.FINISH_LIMIT_KV_CACHE,
                usage=chat_pb2.Usage(prompt_tokens=3, completion_tokens=3, media_tokens=1, cached_tokens=2),
                timings=chat_pb2.Timings(queue_seconds=1, vision_seconds=2, prefill_seconds=3, decode_seconds=4),
            )
        ),
    ]
    started, *_, finished = map(from_wire, events)
    assert isinstance(started, triptych.Started)
    assert isinstance(finished, triptych.Finished)
    assert (started.max_tokens, finished.limit) == (3, "kv_cache")
    (answer,) = gather(event for event in map(from_wire, events) if event is not None)
    assert answer.text == "A cat."
    assert answer.token_ids == (1, 2, 3)
    assert answer.prompt_token_ids == (7, 8, 9)
    assert (answer.finish_reason, answer.finish_limit) == ("length", "kv_cache")
    assert answer.tool_calls == (triptych.ToolCall("c1", "a", '{"x": 1}'), triptych.ToolCall("c2", "b", "{}"))
    assert answer.usage == triptych.Usage(3, 3, 1, 2)
    assert answer.timings == triptych.Timings(1, 2, 3, 4, 0)


def test_reasoning_comes_back_apart_and_goes_out_again() -> None:
    """What the model thinks is no part of its answer, and has its own place in a later request."""
    wire = [
        chat_pb2.ChatEvent(delta=chat_pb2.Delta(reasoning="Fur ", token_ids=[1])),
        chat_pb2.ChatEvent(delta=chat_pb2.Delta(reasoning="and ears.", token_ids=[2])),
        chat_pb2.ChatEvent(delta=chat_pb2.Delta(text="A cat.", token_ids=[3])),
        chat_pb2.ChatEvent(finished=chat_pb2.Finished(usage=chat_pb2.Usage(completion_tokens=3, reasoning_tokens=2))),
    ]
    (answer,) = gather(event for event in map(from_wire, wire) if event is not None)
    assert (answer.reasoning, answer.text) == ("Fur and ears.", "A cat.")
    assert (answer.usage.reasoning_tokens, answer.token_ids) == (2, (1, 2, 3))
    question, again = to_wire([triptych.user("?"), triptych.assistant(answer.text, reasoning=answer.reasoning)])
    assert (question.reasoning, again.reasoning, again.parts[0].text) == ("", "Fur and ears.", "A cat.")


def test_log_probabilities_come_back_as_values() -> None:
    """Each delta has those of its tokens, and the answer has those of all, in order."""

    def scored(token: int, logprob: float) -> chat_pb2.TokenLogprob:
        return chat_pb2.TokenLogprob(token_id=token, text="x", logprob=logprob, raw=b"x")

    position = chat_pb2.PositionLogprobs(chosen=scored(1, -0.5), top=[scored(2, -0.25), scored(1, -0.5)])
    wire = [
        chat_pb2.ChatEvent(delta=chat_pb2.Delta(text="", token_ids=[1], logprobs=[position])),
        chat_pb2.ChatEvent(delta=chat_pb2.Delta(text="xx", token_ids=[1], logprobs=[position])),
        chat_pb2.ChatEvent(finished=chat_pb2.Finished(reason=chat_pb2.FINISH_REASON_STOP)),
    ]
    events = [event for event in map(from_wire, wire) if event is not None]
    one, other = triptych.TokenLogprob(1, "x", -0.5, b"x"), triptych.TokenLogprob(2, "x", -0.25, b"x")
    assert events[0] == triptych.Delta("", (1,), (triptych.PositionLogprobs(one, (other, one)),))
    assert gather(events)[0].logprobs == (triptych.PositionLogprobs(one, (other, one)),) * 2


def test_options_have_their_places_in_the_request() -> None:
    """Every option of a chat goes to its own field, and one that is left out stays unset."""
    generation: dict[str, Any] = {
        "n": 2,
        "max_tokens": 1,
        "clamp_max_tokens": True,
        "temperature": 0.5,
        "top_p": 0.25,
        "top_k": 2,
        "min_p": 0.125,
        "repetition_penalty": 1.5,
        "presence_penalty": -0.5,
        "frequency_penalty": 2.0,
        "logit_bias": {7: -100.0},
        "logprobs": 0,
        "seed": 3,
        "stop": ["a"],
        "stop_token_ids": [5, 6],
        "min_tokens": 1,
        "ignore_eos": True,
        "return_prompt_token_ids": True,
        "recommended_sampling": False,
        "repetition_detection": {"max_pattern_size": 8, "min_count": 3},
    }
    own = {"report_progress": True, "cache_salt": "s"}
    given: Any = {**generation, **own, "model": "m", "request_id": "r", "enable_thinking": False}
    request = chat_request([triptych.user("hi")], given)
    assert request.generation == chat_pb2.GenerationOptions(**generation)
    assert (request.report_progress, request.cache_salt, request.model, request.request_id) == (True, "s", "m", "r")
    assert request.HasField("enable_thinking")
    assert not request.enable_thinking
    silent = chat_request([triptych.user("hi")], {})
    assert silent.generation == chat_pb2.GenerationOptions()
    assert not silent.HasField("enable_thinking")
    forms_and_tools = {"response_format", "regex", "choice", "grammar", "tool_choice", "parallel_tool_calls"}
    only_of_chats = set(ChatOptions.__annotations__) - set(CountOptions.__annotations__)
    assert only_of_chats == {*generation, *forms_and_tools, *own}


def test_half_an_answer_is_no_answer() -> None:
    """A stream that ends without `finished` is an error, not a short answer."""
    with pytest.raises(triptych.TriptychError, match="before the answer") as raised:
        gather([triptych.Delta("A", (1,))])
    assert (raised.value.code, raised.value.reason) == (triptych.Code.INTERNAL, "ANSWER_INCOMPLETE")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"max_tokens": -1}, ValueError),
        ({"max_tokens": 10**10}, ValueError),
        ({"seed": "x"}, TypeError),
        ({"logprobs": "a"}, TypeError),
        ({"logit_bias": {-1: 1.0}}, ValueError),
        ({"logit_bias": {"x": 1.0}}, TypeError),
        ({"stop": [1]}, TypeError),
        ({"stop": ["\ud800"]}, ValueError),
        ({"stop": "abc"}, TypeError),
    ],
)
def test_a_value_that_no_message_can_hold_is_named(options: dict[str, Any], error: type[Exception]) -> None:
    """With its option: protobuf's own errors name none, and a string is a sequence of strings, too."""
    (name,) = options
    with pytest.raises(error, match=f"^{name} is "):
        chat_request([triptych.user("Hello")], options)  # type: ignore[arg-type]
