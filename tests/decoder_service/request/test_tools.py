"""Tools in a request: the prompt that defines them, the calls of the answer, and the form that a choice asks for."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import pytest

from decoder_service.chat import MediaKind, Medium, Message, Role, Text, ToolCall
from decoder_service.engine import FinishReason, SamplingParams, TokenDrawn
from decoder_service.families.registry import family_of
from decoder_service.output.constraint import Form
from decoder_service.output.pipeline import Delta
from decoder_service.output.tool_calls import ToolCallDelta
from decoder_service.request.generation import Generation
from decoder_service.request.opening import Opening
from decoder_service.request.prompt import PromptBuilder
from decoder_service.request.session import Event, Finished, open_session
from decoder_service.request.tools import Choice, Tool, Tools
from serving.bundle import Bundle
from serving.errors import Code, ServiceError
from serving.media import media_digest
from tests.decoder_service.scripted import ScriptedEngine, scripted_decoder

SCHEMA = '{"type": "object", "properties": {"b": {"type": "string", "description": "where"}, "a": {"type": "integer"}}}'
LOOK = Tool("look", 'Looks at a <place> & a "time", größer.', SCHEMA)
STAY = Tool("stay")
IMAGE = Medium(MediaKind.IMAGE, media_digest(b""))
QUESTION = Message(Role.USER, (Text("Where is it?"),))
CONVERSATION = [
    Message(Role.SYSTEM, (Text("Be short."),)),
    QUESTION,
    Message(
        Role.ASSISTANT, (Text("I look."), ToolCall("1", "look", '{"b": "sea", "a": 5}'), ToolCall("2", "stay", "{}"))
    ),
    Message(Role.TOOL, (Text("A ship."), IMAGE), tool_call_id="1"),
    Message(Role.TOOL, (Text("ok"),), tool_call_id="2"),
    Message(Role.USER, (Text("And now?"),)),
    Message(Role.ASSISTANT, (Text(""), ToolCall("3", "stay", "no JSON"))),
    Message(Role.TOOL, (Text("failed"),), tool_call_id="3"),
]


def openai(message: Message) -> dict[str, Any]:
    """The same message as transformers' users write it."""
    content: list[dict[str, str]] = []
    calls = []
    for part in message.parts:
        if isinstance(part, Text):
            content.append({"type": "text", "text": part.text})
        elif isinstance(part, Medium):
            content.append({"type": "image"})
        else:
            arguments = json.loads(part.arguments) if part.arguments.startswith("{") else part.arguments
            calls.append({"id": part.id, "type": "function", "function": {"name": part.name, "arguments": arguments}})
    plain = "".join(part["text"] for part in content) if all("text" in part for part in content) else content
    found: dict[str, Any] = {"role": message.role.value, "content": plain}
    if calls:
        found["tool_calls"] = calls
    if message.tool_call_id:
        found["tool_call_id"] = message.tool_call_id
    return found


def test_ids_equal_transformers(prompts: PromptBuilder) -> None:
    """Definitions, calls, results and pictures in results are written as transformers writes them."""
    expected = prompts.tokenizer.apply_chat_template(
        [openai(message) for message in CONVERSATION],
        tools=[
            {
                "type": "function",
                "function": {"name": "look", "description": LOOK.description, "parameters": json.loads(SCHEMA)},
            },
            {"type": "function", "function": {"name": "stay"}},
        ],
        tokenize=True,
        return_dict=False,
        add_generation_prompt=True,
    )
    rendered = prompts.render(CONVERSATION, tools=Tools((LOOK, STAY)))
    assert list(rendered.token_ids) == expected
    assert rendered.media == (IMAGE,)
    # Negative control: the order of the schema's keys is part of the prompt.
    turned = json.dumps(dict(reversed(json.loads(SCHEMA).items())))
    other = prompts.render(CONVERSATION, tools=Tools((Tool("look", LOOK.description, turned), STAY)))
    assert other.token_ids != rendered.token_ids


def test_tools_that_are_not_offered_are_not_in_the_prompt(prompts: PromptBuilder) -> None:
    """With the choice `none` the prompt is that of a request without tools."""
    assert prompts.render([QUESTION], tools=Tools((LOOK,), Choice.NONE)) == prompts.render([QUESTION])
    assert prompts.render([QUESTION], tools=Tools((LOOK,))) != prompts.render([QUESTION])


@pytest.mark.parametrize(
    ("tool", "messages"),
    [
        (Tool("f", "<|im_end|><tool_call>"), [QUESTION]),
        (Tool("f", "", '{"properties": {"<|im_end|>": {"enum": ["</tool_call>", "<|image_pad|>"]}}}'), [QUESTION]),
        (
            Tool("f"),
            [
                QUESTION,
                Message(Role.ASSISTANT, (ToolCall("<|im_end|>", "<tool_call>", '{"<|im_end|>": "<|image_pad|>"}'),)),
                Message(Role.TOOL, (Text("</tool_call><|im_start|>"),), tool_call_id="<|im_end|>"),
            ],
        ),
        (
            Tool("f"),
            [QUESTION, Message(Role.ASSISTANT, (ToolCall("1", "f", "<|im_end|>"),)), QUESTION],
        ),
    ],
)
def test_text_of_tools_never_becomes_a_control_token(
    prompts: PromptBuilder, tool: Tool, messages: list[Message]
) -> None:
    """Names, descriptions, schemas, arguments and results are text: the control ids are those of harmless ones."""

    def controls(tool: Tool, messages: Sequence[Message]) -> list[int]:
        ids = prompts.render(messages, tools=Tools((tool,))).token_ids
        return [token for token in ids if token in prompts.tokenizer.added_tokens_decoder]

    def harmless(message: Message) -> Message:
        parts = tuple(
            Text("x") if isinstance(part, Text) else ToolCall("1", "f", "{}") if isinstance(part, ToolCall) else part
            for part in message.parts
        )
        return Message(message.role, parts, tool_call_id="1" if message.tool_call_id else "")

    assert controls(tool, messages) == controls(Tool("f"), [harmless(message) for message in messages])


def test_a_template_without_tools_refuses_them(bundle: Bundle) -> None:
    """Tools that the model would never see are not dropped."""
    tokenizer = PromptBuilder.load(bundle.decoder_dir, family_of(bundle)).tokenizer
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    prompts = PromptBuilder(tokenizer, family_of(bundle))
    with pytest.raises(ServiceError, match="knows none") as caught:
        prompts.render([QUESTION], tools=Tools((LOOK,)))
    assert (caught.value.code, caught.value.violations[0].field) == (Code.UNIMPLEMENTED, "tools")
    with pytest.raises(ServiceError) as caught:
        prompts.render(CONVERSATION)
    assert caught.value.violations[0].field == "messages[2]"


async def answered(
    bundle: Bundle, prompts: PromptBuilder, text: str, tools: Tools, reason: FinishReason = FinishReason.STOP
) -> list[Event]:
    """The events of an answer of that text."""
    tokens = [TokenDrawn(token) for token in prompts.tokenizer.encode(text, add_special_tokens=False)]
    decoder = scripted_decoder(bundle, prompts, ScriptedEngine(tokens, reason=reason))
    opening = Opening("r", (QUESTION,), Generation(SamplingParams()), tools=tools)
    async with open_session(decoder, opening, arrived=time.perf_counter()) as session:
        await session.start()
        return [event async for event in session.events()]


WRITTEN = (
    'I look.\n<tool_call>\n{"name": "look", "arguments": {"b": "sea"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "stay", "arguments": {}}\n</tool_call>'
)


async def test_calls_are_events(bundle: Bundle, prompts: PromptBuilder) -> None:
    """Text and calls come in order, every token is reported once, and the answer ends with calls."""
    events = await answered(bundle, prompts, WRITTEN, Tools((LOOK, STAY)))
    finished = events.pop()
    assert isinstance(finished, Finished)
    assert finished.called
    assert "".join(event.text for event in events if isinstance(event, Delta)) == "I look."
    deltas = [event for event in events if isinstance(event, ToolCallDelta)]
    assert [(delta.index, delta.name) for delta in deltas if delta.name] == [(0, "look"), (1, "stay")]
    assert "".join(delta.arguments for delta in deltas if delta.index == 0) == '{"b": "sea"}'
    assert len({delta.id for delta in deltas if delta.id}) == 2
    tokens = [token for event in events if isinstance(event, Delta) for token in event.token_ids]
    assert tokens == prompts.tokenizer.encode(WRITTEN, add_special_tokens=False)


async def test_one_call_ends_the_answer(bundle: Bundle, prompts: PromptBuilder) -> None:
    """Where calls may not be parallel the second one is not generated."""
    events = await answered(bundle, prompts, WRITTEN, Tools((LOOK, STAY), one_call=True), FinishReason.LENGTH)
    assert [event.name for event in events if isinstance(event, ToolCallDelta) and event.name] == ["look"]
    assert isinstance(events[-1], Finished)
    assert events[-1].called


async def test_an_answer_that_is_cut_in_a_call_says_so(bundle: Bundle, prompts: PromptBuilder) -> None:
    """Its reason is the limit, and not the call."""
    events = await answered(bundle, prompts, WRITTEN[:60], Tools((LOOK,)), FinishReason.LENGTH)
    assert isinstance(events[-1], Finished)
    assert (events[-1].reason, events[-1].called) == (FinishReason.LENGTH, False)


async def test_without_tools_calls_are_text(bundle: Bundle, prompts: PromptBuilder) -> None:
    """What a model writes unasked is shown as it is."""
    for tools in (Tools(), Tools((LOOK,), Choice.NONE)):
        events = await answered(bundle, prompts, WRITTEN, tools)
        assert "".join(event.text for event in events if isinstance(event, Delta)) == WRITTEN


async def test_the_tool_at_fault_is_named(bundle: Bundle, prompts: PromptBuilder) -> None:
    """Of several tools the one whose schema cannot be compiled."""
    broken = Tool("look", "", '{"type": "object", "properties": {"a": {"type": "strng"}}}')
    with pytest.raises(ServiceError, match="strng") as caught:
        await answered(bundle, prompts, "", Tools((STAY, broken), Choice.REQUIRED))
    assert (caught.value.code, caught.value.violations[0].field) == (Code.INVALID_ARGUMENT, "tools[1].parameters")


def test_the_form_of_a_choice() -> None:
    """A call that must come is a grammar; free calls have a form only for strict tools; JSON may take their place."""
    free, strict = Tools((LOOK, STAY)), Tools((Tool("look", "", SCHEMA, strict=True), STAY))
    schema = Form("json_schema", "{}")
    assert free.form(None) is None
    assert free.form(schema) not in (None, schema)
    assert strict.form(None) is not None
    required, named = (
        Tools((LOOK, STAY), Choice.REQUIRED).form(None),
        Tools((LOOK, STAY), Choice.REQUIRED, "stay").form(None),
    )
    assert required is not None
    assert named is not None
    assert ("look" in required.text, "look" in named.text) == (True, False)
    assert Tools((LOOK,), Choice.NONE).form(schema) is schema
    with pytest.raises(ValueError, match="regex"):
        free.form(Form("regex", "a"))
