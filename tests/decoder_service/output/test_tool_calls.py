"""Tool calls in the text of an answer: what models really write, whole and cut anywhere."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decoder_service.output.tool_calls import ToolCallDelta, ToolCalls

LOOK = '<tool_call>\n{"name": "look", "arguments": {"at": "the sea", "n": [1, {"a": "}"}]}}\n</tool_call>'
STAY = '<tool_call>\n{"name": "stay", "arguments": {}}\n</tool_call>'
LOOKED = ("look", '{"at": "the sea", "n": [1, {"a": "}"}]}')
STAYED = ("stay", "{}")

WRITTEN: dict[str, tuple[str, str, list[tuple[str, str]]]] = {
    "no call": ("The sea is < 5 <tool> big.\n", "The sea is < 5 <tool> big.\n", []),
    "one call": (LOOK, "", [LOOKED]),
    "text before": (f"I look.\n{LOOK}", "I look.", [LOOKED]),
    "two calls": (f"{LOOK}\n{STAY}", "", [LOOKED, STAYED]),
    "text between and after": (f"a\n\n{LOOK}\nb {STAY}\n c", "a\nb\n c", [LOOKED, STAYED]),
    "blanks after a call": (f"{LOOK}\n\n", "", [LOOKED]),
    "no line breaks": ('<tool_call>{"name":"f","arguments":{"x":1}}</tool_call>', "", [("f", '{"x":1}')]),
    "marks in strings": (
        '<tool_call>\n{"name": "f", "arguments": {"x": "<tool_call> \\"{\\\\"}}\n</tool_call>',
        "",
        [("f", '{"x": "<tool_call> \\"{\\\\"}')],
    ),
    "letters of other alphabets": (
        '<tool_call>\n{"name": "größe", "arguments": {"x": "海 🐟"}}\n</tool_call>',
        "",
        [("größe", '{"x": "海 🐟"}')],
    ),
    "arguments first": ('<tool_call>{"arguments": {"x": 1}, "name": "f"}</tool_call>', "", [("f", '{"x": 1}')]),
    "arguments in a string": (
        '<tool_call>{"name": "f", "arguments": "{\\"x\\": 1}"}</tool_call>',
        "",
        [("f", '{"x": 1}')],
    ),
    "parameters": ('<tool_call>{"name": "f", "parameters": {"x": 1}}</tool_call>', "", [("f", '{"x": 1}')]),
    "no arguments": ('<tool_call>{"name": "f"}</tool_call>', "", [("f", "{}")]),
    "line breaks in strings": (
        '<tool_call>\n{"name": "f", "arguments": {"x": "a\nb"}}\n</tool_call>',
        "",
        [("f", '{"x": "a\nb"}')],
    ),
    "no closing mark": (LOOK.removesuffix("\n</tool_call>"), "", [LOOKED]),
    "no JSON": ("so <tool_call>look at the sea</tool_call> now", "so <tool_call>look at the sea</tool_call> now", []),
    "no name": ('<tool_call>{"arguments": {}}</tool_call>', '<tool_call>{"arguments": {}}</tool_call>', []),
    "a brace too few": (
        '<tool_call>\n{"name": "f", "arguments": {"x": 1}\n</tool_call>\nand so on',
        "\nand so on",
        [("f", '{"x": 1}')],
    ),
    "arguments broken off": (
        '<tool_call>\n{"name": "f", "arguments": {"x": [1</tool_call>',
        "",
        [("f", '{"x": [1')],
    ),
    "cut in the arguments": ('<tool_call>\n{"name": "f", "arguments": {"x": "</tool', "", [("f", '{"x": "</tool')]),
    "cut in the name": ('a <tool_call>\n{"name": "f', 'a <tool_call>\n{"name": "f', []),
    "cut in the mark": ("so <tool_c", "so <tool_c", []),
}


def parse(pieces: list[str], *, one: bool = False) -> tuple[str, list[tuple[str, str]], int]:
    """Text, calls and number of deltas of an answer that comes in pieces."""
    numbers = itertools.count()
    parser = ToolCalls(one=one, new_id=lambda: f"call_{next(numbers)}")
    events: list[str | ToolCallDelta] = []
    for piece in pieces:
        events += parser.push(piece)
        if parser.over:
            break
    else:
        events += parser.flush()
    calls: list[list[str]] = []
    deltas = 0
    for event in events:
        if isinstance(event, ToolCallDelta):
            deltas += 1
            if event.id:
                assert event == ToolCallDelta(len(calls), f"call_{len(calls)}", event.name, event.arguments)
                calls.append([event.name, ""])
            assert event.index == len(calls) - 1
            calls[-1][1] += event.arguments
    assert parser.count == len(calls)
    return "".join(e for e in events if isinstance(e, str)), [(name, text) for name, text in calls], deltas


@pytest.mark.parametrize("name", WRITTEN)
@given(data=st.data())
def test_calls_however_the_text_is_cut(name: str, data: st.DataObject) -> None:
    """The result does not depend on where the text is cut."""
    written, text, calls = WRITTEN[name]
    cuts = sorted(data.draw(st.sets(st.integers(0, len(written)))))
    pieces = [written[a:b] for a, b in itertools.pairwise([0, *cuts, len(written)])]
    assert parse(pieces)[:2] == (text, calls)


@given(st.text('<>/tool_cal{}"\\ \n:,namergus', max_size=80))
def test_nothing_is_lost(text: str) -> None:
    """Whatever the model writes is shown as it is where it is no call."""
    shown, calls, _ = parse(list(text))
    if not calls:
        assert shown == text


def test_arguments_are_streamed() -> None:
    """Each piece of the arguments comes when it is drawn, and not when the call is complete."""
    assert parse(list(LOOK))[2] > 20
    parser = ToolCalls()
    head = list(parser.push('<tool_call>\n{"name": "f", "arguments": {"x": "abc'))
    assert [event.arguments for event in head if isinstance(event, ToolCallDelta)] == ["", '{"x": "abc']


def test_one_call_ends_the_answer() -> None:
    """Where one call is allowed, what follows it is not read."""
    assert parse([LOOK + STAY], one=True)[:2] == ("", [LOOKED])
    assert parse(["text alone"], one=True)[:2] == ("text alone", [])


def test_a_required_call_that_is_cut_is_no_text() -> None:
    """Where the answer can only be calls, the beginning of one is not shown as if it was the answer."""
    for must, shown in ((True, []), (False, ['<tool_call>\n{"n'])):
        parser = ToolCalls(must=must)
        assert [*parser.push('<tool_call>\n{"n'), *parser.flush()] == shown


def test_text_is_not_held_back_for_long() -> None:
    """What cannot be a mark any more comes at once."""
    parser = ToolCalls()
    assert list(parser.push("a < b")) == ["a < b"]
    assert list(parser.push(" <tool")) == []
    assert list(parser.push("s>")) == [" <tools>"]


def test_arguments_are_json() -> None:
    """Of a call that is written as it should be, the arguments parse."""
    for _, arguments in parse([LOOK + STAY])[1]:
        assert isinstance(json.loads(arguments), dict)
