"""Forms of answers that call tools."""

from __future__ import annotations

import json

import pytest

from decoder_service.output.constraint import Constraints, Form
from decoder_service.output.tool_grammar import ToolSchema, calls_or, may_call, must_call
from decoder_service.request.prompt import PromptBuilder
from serving.bundle import Bundle
from tests.decoder_service.output.test_constraint import walk

AT = json.dumps(
    {"type": "object", "properties": {"at": {"type": "integer"}}, "required": ["at"], "additionalProperties": False}
)
LOOK, STAY = ToolSchema("look", AT), ToolSchema("stay")
STRICT = ToolSchema("look", AT, strict=True)
RIGHT = '<tool_call>\n{"name": "look", "arguments": {"at": 5}}\n</tool_call>'
WRONG = '<tool_call>\n{"name": "look", "arguments": {"at": "x"}}\n</tool_call>'
EMPTY = '<tool_call>\n{"name": "stay", "arguments": {}}\n</tool_call>'
OTHER = '<tool_call>\n{"name": "stay", "arguments": {"x": [1]}}\n</tool_call>'
UNKNOWN = '<tool_call>\n{"name": "run", "arguments": {}}\n</tool_call>'


@pytest.fixture(scope="module")
def constraints(prompts: PromptBuilder, bundle: Bundle) -> Constraints:
    """Compiles forms for the small checkpoint."""
    return Constraints(prompts.tokenizer, vocabulary=bundle.text.vocab_size, end_tokens=bundle.tokens.eos)


@pytest.mark.parametrize(
    ("form", "right", "wrong"),
    [
        (
            must_call([LOOK, STAY], one=False),
            [RIGHT, EMPTY, f"{RIGHT}\n{EMPTY}"],
            ["text", WRONG, UNKNOWN, f"a {RIGHT}"],
        ),
        (must_call([LOOK], one=True), [RIGHT], [OTHER, f"{RIGHT}\n{RIGHT}"]),
        (may_call([STRICT, STAY]), ["text", RIGHT, f"I look.\n{RIGHT}\n{OTHER}"], [WRONG, UNKNOWN, f"a {WRONG}"]),
        (must_call([STAY], one=True), [EMPTY], [OTHER]),  # it has no arguments
        (calls_or([LOOK], AT, one=True), [RIGHT, '{"at": 7}'], ["text", WRONG, '{"at": "x"}']),
    ],
)
def test_what_a_form_of_calls_allows(  # noqa: PLR0917  # three fixtures and three parameters
    constraints: Constraints, prompts: PromptBuilder, bundle: Bundle, form: Form, right: list[str], wrong: list[str]
) -> None:
    """Calls of known tools with the arguments that their schemas admit, and what may stand beside them."""
    for text, allowed in [*((text, True) for text in right), *((text, False) for text in wrong)]:
        constraint = constraints.compile(form, force=False)
        passed = walk(constraint, prompts, text)
        assert (passed and bool(constraint.mask()[bundle.tokens.eos[0]])) is allowed, text


def test_free_calls_have_no_form() -> None:
    """Where no tool is strict the model writes what it will."""
    assert may_call([LOOK, STAY]) is None
