"""From the wire to the core: every wrong field by its name."""

from __future__ import annotations

import dataclasses

import pytest
from google.protobuf import json_format

from decoder_service.chat import MediaKind, Medium, Message, RawPrompt, Role, Text, ToolCall
from decoder_service.engine import SamplingParams
from decoder_service.output.constraint import Form
from decoder_service.output.repetition import USUAL, RepetitionLimits
from decoder_service.request.admission import Limits
from decoder_service.request.generation import Generation, GenerationDefaults, RecommendedSampling
from decoder_service.request.opening import Opening
from decoder_service.request.tools import Choice, Tool, Tools
from decoder_service.rpc import from_wire
from serving.errors import Code, ServiceError
from serving.media import media_digest
from vlm.v1 import decoder_pb2

LIMITS = Limits(context_length=100, max_prompt_media=2, max_text_bytes=1000)
DEFAULTS = GenerationDefaults(RecommendedSampling(0.6, top_p=0.8, top_k=20, min_p=0.05, repetition_penalty=1.25))
VOCAB_SIZE = 320
DIGEST = media_digest(b"picture")
USER = {"role": "ROLE_USER", "parts": [{"text": "hi"}]}


def opening(generation: dict | None = None, defaults: GenerationDefaults = DEFAULTS, **fields: object) -> Opening:
    """Check an opening given as protobuf's JSON."""
    request = json_format.ParseDict(
        {"messages": [USER], "generation": generation or {}, **fields}, decoder_pb2.GenerateOpen()
    )
    return from_wire.opening(request, model="tiny", vocab_size=VOCAB_SIZE, defaults=defaults, limits=LIMITS)


def user(*parts: dict) -> list[dict]:
    """A conversation of one message."""
    return [{"role": "ROLE_USER", "parts": list(parts)}]


def message(role: object, *parts: dict) -> dict:
    """One message."""
    return {"role": role, "parts": list(parts) or [{"text": "x"}]}


IMAGE = {"image": {"digest": DIGEST}}

REFUSED = [
    ({"messages": []}, Code.INVALID_ARGUMENT, "messages"),
    ({"messages": [USER] * 1025}, Code.RESOURCE_EXHAUSTED, "messages"),
    ({"messages": user(*[{"text": ""}] * 16385)}, Code.RESOURCE_EXHAUSTED, "messages"),
    ({"messages": user({"text": "é" * 501})}, Code.RESOURCE_EXHAUSTED, "messages"),
    ({"messages": user(IMAGE, IMAGE, IMAGE)}, Code.RESOURCE_EXHAUSTED, "messages"),
    ({"messages": [message(0)]}, Code.INVALID_ARGUMENT, "messages[0].role"),
    ({"messages": [USER, message(99)]}, Code.INVALID_ARGUMENT, "messages[1].role"),
    ({"messages": [message(-1)]}, Code.INVALID_ARGUMENT, "messages[0].role"),
    ({"messages": [message("ROLE_TOOL"), USER]}, Code.INVALID_ARGUMENT, "messages[0].tool_call_id"),
    ({"messages": [{**USER, "toolCallId": "1"}]}, Code.INVALID_ARGUMENT, "messages[0].tool_call_id"),
    ({"messages": [{"role": "ROLE_USER"}]}, Code.INVALID_ARGUMENT, "messages[0].parts"),
    ({"messages": user({"text": "x"}, {})}, Code.INVALID_ARGUMENT, "messages[0].parts[1]"),
    ({"messages": user({"toolCall": {"name": "f"}})}, Code.INVALID_ARGUMENT, "messages[0].parts[0].tool_call"),
    (
        {"messages": [message("ROLE_ASSISTANT", {"toolCall": {}}), USER]},
        Code.INVALID_ARGUMENT,
        "messages[0].parts[0].tool_call.name",
    ),
    ({"messages": user({"image": {}})}, Code.INVALID_ARGUMENT, "messages[0].parts[0].image"),
    ({"messages": user({"image": {"data": "AA=="}})}, Code.INVALID_ARGUMENT, "messages[0].parts[0].image"),
    ({"messages": user({"video": {"url": "http://x"}})}, Code.INVALID_ARGUMENT, "messages[0].parts[0].video"),
    ({"messages": user({"video": {"digest": "x"}})}, Code.INVALID_ARGUMENT, "messages[0].parts[0].video.digest"),
    ({"messages": [message("ROLE_SYSTEM", IMAGE), USER]}, Code.INVALID_ARGUMENT, "messages[0].parts[0].image"),
    ({"messages": [message("ROLE_ASSISTANT", IMAGE), USER]}, Code.INVALID_ARGUMENT, "messages[0].parts[0].image"),
    ({"messages": [{**USER, "reasoning": "r"}]}, Code.INVALID_ARGUMENT, "messages[0].reasoning"),
    (
        {"messages": [{**message("ROLE_ASSISTANT"), "reasoning": "é" * 500}, USER]},
        Code.RESOURCE_EXHAUSTED,
        "messages",
    ),
    ({"requestId": "a\nb"}, Code.INVALID_ARGUMENT, "request_id"),
    ({"requestId": "a" * 129}, Code.INVALID_ARGUMENT, "request_id"),
    ({"media": {"minPixels": 0}}, Code.INVALID_ARGUMENT, "media.min_pixels"),
    ({"tools": [{}]}, Code.INVALID_ARGUMENT, "tools[0].name"),
    ({"tools": [{"name": "a b"}]}, Code.INVALID_ARGUMENT, "tools[0].name"),
    ({"tools": [{"name": "f"}, {"name": "f"}]}, Code.INVALID_ARGUMENT, "tools[1].name"),
    ({"tools": [{"name": "f", "parameters": "{"}]}, Code.INVALID_ARGUMENT, "tools[0].parameters"),
    ({"tools": [{"name": "f", "parameters": "[]"}]}, Code.INVALID_ARGUMENT, "tools[0].parameters"),
    ({"tools": [{"name": "f", "parameters": '{"type": "integer"}'}]}, Code.INVALID_ARGUMENT, "tools[0].parameters"),
    ({"tools": [{"name": f"f{i}"} for i in range(129)]}, Code.INVALID_ARGUMENT, "tools"),
    ({"tools": [{"name": "f", "description": "x" * 262145}]}, Code.INVALID_ARGUMENT, "tools"),
    ({"toolChoice": {"required": True}}, Code.INVALID_ARGUMENT, "tool_choice"),
    ({"toolChoice": {"auto": False}}, Code.INVALID_ARGUMENT, "tool_choice.auto"),
    ({"tools": [{"name": "f"}], "toolChoice": {"name": "g"}}, Code.INVALID_ARGUMENT, "tool_choice.name"),
    ({"generation": {"maxTokens": 0}}, Code.INVALID_ARGUMENT, "generation.max_tokens"),
    ({"generation": {"temperature": -0.1}}, Code.INVALID_ARGUMENT, "generation.temperature"),
    ({"generation": {"temperature": 2.1}}, Code.INVALID_ARGUMENT, "generation.temperature"),
    ({"generation": {"temperature": "NaN"}}, Code.INVALID_ARGUMENT, "generation.temperature"),
    ({"generation": {"topP": 0}}, Code.INVALID_ARGUMENT, "generation.top_p"),
    ({"generation": {"topP": 1.1}}, Code.INVALID_ARGUMENT, "generation.top_p"),
    ({"generation": {"topP": "NaN"}}, Code.INVALID_ARGUMENT, "generation.top_p"),
    ({"generation": {"stop": ["a"] * 17}}, Code.INVALID_ARGUMENT, "generation.stop"),
    ({"generation": {"stop": ["a", ""]}}, Code.INVALID_ARGUMENT, "generation.stop[1]"),
    ({"generation": {"stop": ["a" * 257]}}, Code.INVALID_ARGUMENT, "generation.stop[0]"),
    ({"generation": {"minP": -0.5}}, Code.INVALID_ARGUMENT, "generation.min_p"),
    ({"generation": {"minP": 1.5}}, Code.INVALID_ARGUMENT, "generation.min_p"),
    ({"generation": {"minP": "NaN"}}, Code.INVALID_ARGUMENT, "generation.min_p"),
    ({"generation": {"repetitionPenalty": "Infinity"}}, Code.INVALID_ARGUMENT, "generation.repetition_penalty"),
    ({"generation": {"repetitionPenalty": 0}}, Code.INVALID_ARGUMENT, "generation.repetition_penalty"),
    ({"generation": {"repetitionPenalty": "NaN"}}, Code.INVALID_ARGUMENT, "generation.repetition_penalty"),
    ({"generation": {"presencePenalty": -2.5}}, Code.INVALID_ARGUMENT, "generation.presence_penalty"),
    ({"generation": {"presencePenalty": 3}}, Code.INVALID_ARGUMENT, "generation.presence_penalty"),
    ({"generation": {"frequencyPenalty": 2.5}}, Code.INVALID_ARGUMENT, "generation.frequency_penalty"),
    ({"generation": {"frequencyPenalty": "NaN"}}, Code.INVALID_ARGUMENT, "generation.frequency_penalty"),
    ({"generation": {"logitBias": {"1": 100.5}}}, Code.INVALID_ARGUMENT, "generation.logit_bias[1]"),
    ({"generation": {"logitBias": {"1": "NaN"}}}, Code.INVALID_ARGUMENT, "generation.logit_bias[1]"),
    ({"generation": {"logitBias": {"320": 1}}}, Code.INVALID_ARGUMENT, "generation.logit_bias[320]"),
    (
        {"generation": {"logitBias": {str(token): 1 for token in range(1025)}}},
        Code.INVALID_ARGUMENT,
        "generation.logit_bias",
    ),
    (
        {"generation": {"repetitionDetection": {"maxPatternSize": 1025, "minCount": 2}}},
        Code.INVALID_ARGUMENT,
        "generation.repetition_detection.max_pattern_size",
    ),
    (
        {"generation": {"repetitionDetection": {"maxPatternSize": 8, "minPatternSize": 9, "minCount": 2}}},
        Code.INVALID_ARGUMENT,
        "generation.repetition_detection.min_pattern_size",
    ),
    (
        {"generation": {"repetitionDetection": {"maxPatternSize": 8, "minCount": 1}}},
        Code.INVALID_ARGUMENT,
        "generation.repetition_detection.min_count",
    ),
    ({"generation": {"n": 9}}, Code.INVALID_ARGUMENT, "generation.n"),
    ({"prompt": {"text": "x"}}, Code.INVALID_ARGUMENT, "messages"),
    ({"messages": [], "prompt": {}}, Code.INVALID_ARGUMENT, "prompt"),
    ({"messages": [], "prompt": {"text": "é" * 501}}, Code.RESOURCE_EXHAUSTED, "prompt.text"),
    (
        {"messages": [], "prompt": {"tokenIds": {"values": [1, 320]}}},
        Code.INVALID_ARGUMENT,
        "prompt.token_ids.values[1]",
    ),
    ({"messages": [], "prompt": {"text": "x"}, "tools": [{"name": "f"}]}, Code.INVALID_ARGUMENT, "tools"),
    ({"messages": [], "prompt": {"text": "x"}, "enableThinking": True}, Code.INVALID_ARGUMENT, "enable_thinking"),
    ({"generation": {"stopTokenIds": [1, 320]}}, Code.INVALID_ARGUMENT, "generation.stop_token_ids[1]"),
    ({"generation": {"stopTokenIds": [1] * 65}}, Code.INVALID_ARGUMENT, "generation.stop_token_ids"),
    ({"generation": {"minTokens": 3, "maxTokens": 2}}, Code.INVALID_ARGUMENT, "generation.min_tokens"),
    ({"generation": {"logprobs": 21}}, Code.INVALID_ARGUMENT, "generation.logprobs"),
    *(
        ({"generation": {"responseFormat": sent}}, Code.INVALID_ARGUMENT, f"generation.response_format{path}")
        for sent, path in (
            ({}, ""),
            ({"jsonObject": False}, ".json_object"),
            ({"choice": {}}, ".choice.values"),
            ({"choice": {"values": ["a", ""]}}, ".choice.values"),
            ({"regex": "a" * 262145}, ".regex"),
        )
    ),
]


@pytest.mark.parametrize(("fields", "code", "path"), REFUSED, ids=lambda value: str(value)[:60])
def test_refused(fields: dict, code: Code, path: str) -> None:
    """What is wrong is refused with its code, and its field is named."""
    with pytest.raises(ServiceError) as caught:
        opening(**fields)
    assert caught.value.code is code
    assert [violation.field for violation in caught.value.violations] == [path]
    assert path in caught.value.message


def test_limits_are_named_with_their_values() -> None:
    """A limit that is passed is in the sentence and, for programs, in the metadata."""
    with pytest.raises(ServiceError, match="max_prompt_media, which is 2") as caught:
        opening(messages=user(IMAGE, IMAGE, IMAGE))
    assert caught.value.metadata == {"limit": "2"}


def test_a_model_that_takes_text_only_refuses_media() -> None:
    """By their field, as the gateway does."""
    sent = decoder_pb2.GenerateOpen()
    json_format.ParseDict({"messages": user({"text": "Hi"}, {"video": {"digest": media_digest(b"file")}})}, sent)
    assert from_wire.conversation(sent.messages, LIMITS)
    with pytest.raises(ServiceError) as caught:
        from_wire.conversation(sent.messages, dataclasses.replace(LIMITS, takes=frozenset()))
    assert caught.value.reason == "MEDIA_NOT_SUPPORTED"
    assert [violation.field for violation in caught.value.violations] == ["messages[0].parts[1].video"]


def test_an_unknown_role_is_told_by_number() -> None:
    """The number that was sent is in the sentence."""
    with pytest.raises(ServiceError, match=r"messages\[0\].role: is 99"):
        opening(messages=[message(99)])


def test_another_model_is_not_found() -> None:
    """Only the model that is served, or none, may be named."""
    assert opening(model="tiny").request_id
    with pytest.raises(ServiceError) as caught:
        opening(model="other")
    assert caught.value.code is Code.NOT_FOUND


def test_a_conversation_becomes_values() -> None:
    """Roles, texts and media arrive in order; an empty text is a text."""
    digest = media_digest(b"video")
    checked = opening(
        requestId="r-1",
        messages=[
            message("ROLE_SYSTEM", {"text": "s"}),
            message("ROLE_USER", {"text": ""}, IMAGE, {"video": {"digest": digest}}),
            {**message("ROLE_ASSISTANT", {"text": "a"}), "reasoning": "r"},
            USER,
        ],
    )
    assert checked.request_id == "r-1"
    assert checked.messages == (
        Message(Role.SYSTEM, (Text("s"),)),
        Message(Role.USER, (Text(""), Medium(MediaKind.IMAGE, DIGEST), Medium(MediaKind.VIDEO, digest))),
        Message(Role.ASSISTANT, (Text("a"),), "r"),
        Message(Role.USER, (Text("hi"),)),
    )


def test_what_changes_nothing_replaces_the_checkpoints() -> None:
    """A penalty of 1 and a min_p of 0 are not the same as none: they take the place of the checkpoint's."""
    neutral = {"minP": 0, "repetitionPenalty": 1, "presencePenalty": 0, "frequencyPenalty": 0}
    sampling = opening(neutral).generation.sampling
    assert sampling == SamplingParams(0, 0.8, 20, sampling.seed)


def test_bounds_are_within() -> None:
    """The ends of every range are taken, and a token may be biased without a penalty on others."""
    extreme = {
        "minP": 1,
        "repetitionPenalty": 0.5,
        "presencePenalty": -2,
        "frequencyPenalty": 2,
        "logitBias": {"0": -100, "319": 100},
        "logprobs": 20,
    }
    sampling = opening(extreme).generation.sampling
    assert (sampling.min_p, sampling.repetition_penalty) == (1, 0.5)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (-2, 2)
    assert sampling.logit_bias == {0: -100, 319: 100}
    assert sampling.logprobs == 20


def test_where_an_answer_may_end() -> None:
    """Stop tokens, the fewest tokens and what is ignored arrive; unset, the model's end tokens alone end an answer."""
    asked = opening({"stopTokenIds": [5, 319, 5], "minTokens": 2, "maxTokens": 2, "ignoreEos": True}).generation
    assert (asked.stop_token_ids, asked.sampling.min_tokens, asked.ignore_eos) == ({5, 319}, 2, True)
    silent = opening().generation
    assert (silent.stop_token_ids, silent.sampling.min_tokens, silent.ignore_eos) == (frozenset(), 0, False)
    assert opening({"minTokens": 9}).generation.max_tokens is None  # the server's default decides


def test_a_prompt_in_the_place_of_messages() -> None:
    """Text, with or without its control tokens, or tokens."""
    for sent, expected in (
        ({"text": "a"}, RawPrompt("a")),
        ({"text": "a", "parseSpecial": True}, RawPrompt("a", parse_special=True)),
        ({"tokenIds": {"values": [5, 319]}}, RawPrompt((5, 319))),
    ):
        assert opening(messages=[], prompt=sent).messages == expected


def test_the_number_of_answers() -> None:
    """One unless more are asked for."""
    assert [opening(sent).generation.choices for sent in ({}, {"n": 0}, {"n": 1}, {"n": 8})] == [1, 1, 1, 8]


def test_no_alternatives_is_not_no_log_probabilities() -> None:
    """`logprobs` of 0 asks for those of the tokens drawn; unset, for none."""
    assert opening({"logprobs": 0}).generation.sampling.logprobs == 0
    assert opening().generation.sampling.logprobs is None


def options_of(media: dict, own: dict | None = None, kind: str = "video") -> bytes:
    """The options of the medium of a request."""
    parts = {kind: {"digest": DIGEST, "options": own or {}}}
    (medium,) = opening(media=media, messages=user(parts)).messages[0].parts
    assert isinstance(medium, Medium)
    return medium.options


def test_media_options_are_compared_as_they_were_sent() -> None:
    """The same options are the same bytes, others are others, and an option set to 0 is not one left out."""
    bounds = {"minVideoPixels": 4096, "maxVideoPixels": 8192}
    assert options_of(bounds) == options_of(dict(reversed(bounds.items())))
    sent = [{}, bounds, {"maxVideoPixels": 8192}, {"minVideoPixels": 4096}, {"fps": 1}, {"fps": 2}]
    assert len({options_of(options) for options in sent}) == len(sent)


def test_a_medium_has_options_of_its_own() -> None:
    """They take the place of the request's, field by field, or wholly where they name a budget."""
    assert options_of({"fps": 1, "maxFrames": 4}, {"fps": 2}) == options_of({"fps": 2, "maxFrames": 4})
    assert options_of({"fps": 1}, {"detail": "DETAIL_LOW"}) == options_of({}, {"detail": "DETAIL_LOW"})
    assert options_of({"fps": 1}) != options_of({})


def test_options_of_another_kind_make_no_difference() -> None:
    """What is said about pictures does not tell videos apart, nor the other way round."""
    assert options_of({"maxPixels": 4096}) == options_of({})
    assert options_of({"fps": 1}, kind="image") == options_of({}, kind="image")
    assert options_of({"maxPixels": 4096}, kind="image") != options_of({}, kind="image")


def test_unset_options_are_the_checkpoints() -> None:
    """An answer is greedy unless another is asked for; the rest is generation_config's, or as the request says."""
    sampling = opening().generation.sampling
    assert sampling == SamplingParams(0, 0.8, 20, sampling.seed, min_p=0.05, repetition_penalty=1.25)
    asked = {
        "temperature": 1.5,
        "topP": 0.5,
        "topK": 0,
        "seed": 7,
        "minP": 0.25,
        "repetitionPenalty": 1.5,
        "maxTokens": 9,
        "stop": ["a", "b"],
        "returnPromptTokenIds": True,
        "clampMaxTokens": True,
    }
    drawn = SamplingParams(1.5, 0.5, 0, 7, min_p=0.25, repetition_penalty=1.5)
    assert opening(asked).generation == Generation(drawn, 9, ("a", "b"), True, clamp_max_tokens=True)


def test_recommended_sampling_is_taken_where_it_is_asked_for() -> None:
    """By the request, or by the server's setting if the request is silent; what a request sets itself holds."""
    sampling = GenerationDefaults(DEFAULTS.recommended, sample=True)

    def temperature(defaults: GenerationDefaults, **options: object) -> float:
        drawn = opening(options, defaults).generation.sampling
        assert (drawn.top_p, drawn.top_k) == (0.8, 20)
        return drawn.temperature

    assert temperature(DEFAULTS) == 0
    assert temperature(DEFAULTS, recommendedSampling=True) == 0.6
    assert temperature(sampling) == 0.6
    assert temperature(sampling, recommendedSampling=False) == 0
    assert temperature(sampling, temperature=0) == 0
    assert temperature(DEFAULTS, recommendedSampling=True, temperature=1.5) == 1.5


def test_circles_are_looked_for_where_it_is_asked_for() -> None:
    """By the request, or by the server's setting, which a request can turn off."""
    looking = GenerationDefaults(repetition=USUAL)
    asked = {"repetitionDetection": {"maxPatternSize": 8, "minCount": 3}}
    off: dict = {"repetitionDetection": {}}
    assert opening().generation.repetition is None
    assert opening({}, looking).generation.repetition == USUAL
    assert opening(asked).generation.repetition == opening(asked, looking).generation.repetition
    assert opening(asked).generation.repetition == RepetitionLimits(1, 8, 3)
    assert opening(off, looking).generation.repetition is None


def test_whether_to_think_has_three_answers() -> None:
    """Yes, no, and as the template has it."""
    assert [opening(**said).enable_thinking for said in ({"enableThinking": True}, {"enableThinking": False}, {})] == [
        True,
        False,
        None,
    ]


def test_seeds_are_drawn_afresh() -> None:
    """Without a seed two requests have two."""
    seeds = {opening().generation.sampling.seed for _ in range(5)}
    assert len(seeds) > 1
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize(
    ("sent", "form"),
    [
        ({"jsonSchema": '{"b": 1, "a": 2}'}, Form("json_schema", '{"b": 1, "a": 2}')),
        ({"jsonObject": True}, Form("json_schema", '{"type": "object"}')),
        ({"regex": "a+"}, Form("regex", "a+")),
        ({"grammar": "start: x"}, Form("grammar", "start: x")),
        ({"choice": {"values": ["a", 'b"']}}, Form("choice", '["a", "b\\""]')),
    ],
)
def test_forms(sent: dict, form: Form) -> None:
    """Each kind of form arrives as it was sent."""
    assert opening(generation={"responseFormat": sent}).generation.form == form
    assert opening().generation.form is None


@pytest.mark.parametrize(
    ("sent", "choice", "only", "one"),
    [
        (None, Choice.AUTO, "", False),
        ({"auto": True, "oneCall": True}, Choice.AUTO, "", True),
        ({"oneCall": True}, Choice.AUTO, "", True),
        ({"none": True}, Choice.NONE, "", False),
        ({"required": True}, Choice.REQUIRED, "", False),
        ({"name": "f"}, Choice.REQUIRED, "f", False),
    ],
)
def test_tools(sent: dict | None, choice: Choice, only: str, one: bool) -> None:
    """Definitions and the choice between them arrive as they were sent."""
    tool = {"name": "f", "description": "d", "parameters": '{"type": "object"}', "strict": True}
    fields = {"tools": [tool], **({} if sent is None else {"toolChoice": sent})}
    assert opening(**fields).tools == Tools((Tool("f", "d", '{"type": "object"}', strict=True),), choice, only, one)


def test_calls_and_results_in_messages() -> None:
    """An assistant's calls come after its text; a tool's result may have pictures."""
    call = {"toolCall": {"id": "1", "name": "f", "arguments": "{}"}}
    sent = [
        USER,
        message("ROLE_ASSISTANT", {"text": "a"}, call),
        {**message("ROLE_TOOL", {"text": "r"}, IMAGE), "toolCallId": "1"},
    ]
    _, called, result = opening(messages=sent).messages
    assert called == Message(Role.ASSISTANT, (Text("a"), ToolCall("1", "f", "{}")))
    assert (result.role, result.tool_call_id, len(result.parts)) == (Role.TOOL, "1", 2)
