"""Forms of answers: what is compiled, which tokens it allows, and that every finished answer has its form."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from decoder_service.engine import Constraint, EngineFinished, EngineRequest, FinishReason, SamplingParams, TokenDrawn
from decoder_service.families.registry import family_of
from decoder_service.output.constraint import AfterReasoning, ConstraintError, Constraints, Form, FormError
from decoder_service.output.detokenizer import Detokenizer, TokenBytes
from decoder_service.output.reasoning import Marks
from decoder_service.request.prompt import PromptBuilder
from serving.bundle import Bundle
from tests.decoder_service.engines import collect, make_engine, running, text_request
from triptych.bundles import demo_bundle

SCHEMAS = 250  # for each of two models
TOKENS = 120


@pytest.fixture(scope="module")
def constraints(prompts: PromptBuilder, bundle: Bundle) -> Constraints:
    """Compiles forms for the small checkpoint."""
    return Constraints(prompts.tokenizer, vocabulary=bundle.text.vocab_size, end_tokens=bundle.tokens.eos)


def walk(constraint: Constraint, prompts: PromptBuilder, text: str) -> bool:
    """Whether every token of the text may be drawn, one after the other, by a constraint that forces none."""
    for token in prompts.tokenizer.encode(text, add_special_tokens=False):
        if not constraint.mask()[token]:
            return False
        constraint.advance(token)
    return True


@pytest.mark.parametrize(
    ("form", "right", "wrong"),
    [
        (Form("regex", "[0-9]{2}-x"), ["12-x"], ["1-x", "ab"]),
        (Form("choice", '["red", "a \\"b\\""]'), ["red", 'a "b"'], ["blue", "redd"]),
        (Form("grammar", 'start: "a" NUM\nNUM: /[0-9]+/'), ["a1", "a99"], ["b1", "a"]),
        (Form("grammar", 'root ::= "a" [0-9]+'), ["a1", "a99"], ["b1", "a"]),
        (Form("json_schema", '{"type": "object"}'), ["{}", '{"b": [1, null]}'], ["[]", '{"b":']),
        (
            Form("json_schema", '{"type":"object","properties":{"b":{"type":"integer"},"a":{}},"required":["b","a"]}'),
            ['{"b": 1, "a": 2}'],
            ['{"a": 2, "b": 1}', '{"b": 1}'],  # in the schema's order
        ),
    ],
)
def test_what_a_form_allows(  # noqa: PLR0917  # three fixtures and three parameters
    constraints: Constraints, prompts: PromptBuilder, bundle: Bundle, form: Form, right: list[str], wrong: list[str]
) -> None:
    """Texts of the form pass and may end there; others stop at a token, or may not end."""
    end = bundle.tokens.eos[0]
    for text in right:
        constraint = constraints.compile(form, force=False)
        assert walk(constraint, prompts, text)
        assert constraint.mask()[end]
    for text in wrong:
        constraint = constraints.compile(form, force=False)
        assert not (walk(constraint, prompts, text) and constraint.mask()[end])


@pytest.mark.parametrize(
    ("form", "says"),
    [
        (Form("json_schema", '{"type": "strin"}'), "strin"),
        (Form("json_schema", "{"), "line 1"),
        (Form("json_schema", '{"$ref": "#/nowhere"}'), "/nowhere"),
        (Form("json_schema", '{"type": "string", "pattern": "(?<=a)b"}'), "look-around"),
        (Form("regex", "(a|b"), "unclosed group"),
        (Form("grammar", "start: nothing"), "nothing"),
        (Form("grammar", ""), "root"),
        # These compile, and have no first token, or too many.
        (Form("json_schema", '{"$ref": "#"}'), "no text"),
        (Form("json_schema", '{"type": "object", "properties": {"n": {"$ref": "#"}}, "required": ["n"]}'), "too long"),
        (Form("regex", r"[^\s\S]"), "no text"),
        (Form("regex", "a{100000000}"), "too long"),
        (Form("grammar", "start: start"), "no text"),
        (Form("grammar", 'start: "(" start ")"'), "too long"),
        (Form("grammar", "root ::= " + " | ".join(f'"a{i}" root' for i in range(2500))), "row"),
    ],
)
def test_a_form_that_cannot_be_compiled(constraints: Constraints, form: Form, says: str) -> None:
    """The compiler's sentence is passed on, in one line."""
    with pytest.raises(FormError, match=re.escape(says)) as refused:
        constraints.compile(form)
    assert "\n" not in str(refused.value)


def test_a_token_that_is_not_allowed_ends_the_constraint(constraints: Constraints, prompts: PromptBuilder) -> None:
    """The next mask raises; another answer of the same form is not touched."""
    form = Form("regex", "ab")
    broken, whole = (constraints.compile(form, force=False) for _ in range(2))
    broken.advance(prompts.tokenizer.encode("z", add_special_tokens=False)[0])
    with pytest.raises(ConstraintError):
        broken.mask()
    assert walk(whole, prompts, "ab")


async def test_a_row_whose_constraint_fails_fails_alone(prompts: PromptBuilder, bundle: Bundle) -> None:
    """The rows beside it go on, and give what they give alone."""

    class Failing:
        def mask(self) -> Any:
            raise ConstraintError("too complex")

        def forced(self) -> list[int]:
            raise AssertionError

        def advance(self, token: int) -> None:
            raise AssertionError

    prompt = prompts.tokenizer.encode("Hello there", add_special_tokens=False)
    async with running(engine := make_engine("batch", bundle, slots=2)):
        alone = await collect(engine, text_request(prompt, 8))
        broken = dataclasses.replace(text_request(prompt, 8), constraint=Failing())
        beside, failed = await asyncio.gather(
            collect(engine, text_request(prompt, 8)), collect(engine, broken), return_exceptions=True
        )
    assert [event for event in beside if isinstance(event, TokenDrawn)] == [
        event for event in alone if isinstance(event, TokenDrawn)
    ]
    assert isinstance(failed, Exception)
    assert "can go no further: too complex" in str(failed)


def test_forced_tokens_have_no_alternative(constraints: Constraints, prompts: PromptBuilder) -> None:
    """They are what a constraint that forces nothing allows, one by one."""
    schema = '{"type": "object", "properties": {"colour": {"enum": ["red", "blue"]}}, "required": ["colour"]}'
    form = Form("json_schema", schema)
    fast, slow = constraints.compile(form), constraints.compile(form, force=False)
    found = 0
    token = int(np.flatnonzero(fast.mask())[0])
    for _ in range(20):
        fast.advance(token)
        slow.advance(token)
        for forced in fast.forced():
            assert list(np.flatnonzero(slow.mask())) == [forced]
            slow.advance(forced)
            found += 1
        assert slow.forced() == []
        assert (fast.mask() == slow.mask()).all()
        token = int(np.flatnonzero(fast.mask())[0])
        if len(np.flatnonzero(fast.mask())) > 1:
            break
    assert found > 3


def schemas() -> st.SearchStrategy[dict[str, Any]]:
    """JSON schemas with the keywords that clients use; strings and lists are short, so that answers end."""
    names = st.text("abcxyz_", min_size=1, max_size=4)
    short = st.integers(0, 5)
    leaves = st.one_of(
        st.just({"type": "null"}),
        st.just({"type": "boolean"}),
        st.tuples(st.integers(-50, 0), st.integers(0, 50)).map(
            lambda bounds: {"type": "integer", "minimum": bounds[0], "maximum": bounds[1]}
        ),
        st.tuples(st.integers(-50, 0), st.integers(1, 50)).map(
            lambda bounds: {"type": "number", "minimum": bounds[0], "maximum": bounds[1]}
        ),
        short.map(lambda most: {"type": "string", "maxLength": most}),
        st.sampled_from(
            [
                {"type": "string", "pattern": "^[a-c]{1,3}-[0-9]{2}$"},
                {"type": "string", "format": "date"},
                {"type": "string", "format": "uuid"},
            ]
        ),
        st.lists(st.one_of(names, st.integers(0, 99), st.booleans()), min_size=1, max_size=3).map(
            lambda values: {"enum": values}
        ),
        names.map(lambda value: {"const": value}),
    )

    def nested(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
        objects = st.dictionaries(names, inner, max_size=4).flatmap(
            lambda properties: st.sets(st.sampled_from(sorted(properties)) if properties else st.nothing()).map(
                lambda required: {
                    "type": "object",
                    "properties": properties,
                    "required": sorted(required),
                    "additionalProperties": False,
                }
            )
        )
        lists = st.tuples(inner, st.integers(0, 1), st.integers(1, 3)).map(
            lambda parts: {"type": "array", "items": parts[0], "minItems": parts[1], "maxItems": parts[2]}
        )
        return st.one_of(objects, lists, st.lists(inner, min_size=1, max_size=3).map(lambda some: {"anyOf": some}))

    return st.recursive(leaves, nested, max_leaves=5)


@pytest.mark.parametrize("model", ["random weights", "the demo"])
async def test_every_finished_answer_has_its_schema(bundle: Bundle, model: str) -> None:
    """Sampled: what ends by itself parses and validates, what is cut says so."""
    if model == "the demo":
        bundle = Bundle.open(demo_bundle("int4"))
    prompts = PromptBuilder.load(bundle.decoder_dir, family_of(bundle))
    constraints = Constraints(prompts.tokenizer, vocabulary=bundle.text.vocab_size, end_tokens=bundle.tokens.eos)
    found: list[dict[str, Any]] = []

    @settings(max_examples=SCHEMAS, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(schema=schemas())
    def gather(schema: dict[str, Any]) -> None:
        found.append(schema)

    gather()
    async with running(engine := make_engine("batch", bundle, slots=8, threads=2)):
        room = asyncio.Semaphore(16)

        async def answer(seed: int, schema: dict[str, Any]) -> str:
            async with room:
                constraint = constraints.compile(Form("json_schema", json.dumps(schema)))
                events = await collect(engine, constrained(prompts, bundle, constraint, seed))
            text = text_of(events, prompts, bundle)
            ended = events[-1]
            assert isinstance(ended, EngineFinished)
            if ended.reason is FinishReason.STOP:
                jsonschema.Draft202012Validator(schema).validate(json.loads(text))
            return ended.reason.value

        reasons = await asyncio.gather(*(answer(seed, schema) for seed, schema in enumerate(found)))
        # Negative control: the same model without a constraint writes no JSON.
        free = text_of(await collect(engine, constrained(prompts, bundle, None, 0)), prompts, bundle)
    assert reasons.count("stop") > len(reasons) / 2
    with pytest.raises(json.JSONDecodeError):
        json.loads(free)


def constrained(prompts: PromptBuilder, bundle: Bundle, constraint: Constraint | None, seed: int) -> EngineRequest:
    """A short prompt whose answer is drawn at random."""
    prompt = prompts.tokenizer.encode("Answer in JSON:", add_special_tokens=False)
    request = text_request(prompt, TOKENS, SamplingParams(temperature=1.0, seed=seed))
    return dataclasses.replace(request, constraint=constraint, stop_token_ids=frozenset(bundle.tokens.eos))


def text_of(events: list[Any], prompts: PromptBuilder, bundle: Bundle) -> str:
    """The text of an answer, without its end."""
    detokenizer = Detokenizer(TokenBytes(prompts.tokenizer.backend_tokenizer))
    tokens = [event.token_id for event in events if isinstance(event, TokenDrawn)]
    text = "".join(detokenizer.push(token) for token in tokens if token not in bundle.tokens.eos)
    return text + detokenizer.flush()


def test_masks_are_of_the_vocabulary(constraints: Constraints, bundle: Bundle) -> None:
    """As wide as the logits, and nothing beyond the tokenizer's tokens is allowed."""
    mask = constraints.compile(Form("regex", ".*")).mask()
    assert mask.shape == (bundle.text.vocab_size,)
    assert mask.dtype == np.bool_


@pytest.mark.parametrize(
    ("opened", "text", "allowed"),
    [
        (True, "any thing</think>yes", True),
        (True, "</think>no", True),
        (True, "yes</think>maybe", False),
        (True, "<think></think>yes", True),
        (False, "<think>any thing</think>no", True),
        (False, "no", True),
        (False, "maybe", False),
        (False, "no<think>", False),
        (False, "<think></think><think>", False),
    ],
)
def test_reasoning_is_free(  # noqa: PLR0917  # three fixtures and three parameters
    constraints: Constraints, prompts: PromptBuilder, bundle: Bundle, opened: bool, text: str, allowed: bool
) -> None:
    """Only what follows it has the form, whether the prompt or the model begins it, or nobody does."""
    constraint = AfterReasoning(
        constraints.compile(Form("choice", '["yes", "no"]'), force=False),
        Marks.of(prompts.tokenizer.backend_tokenizer),
        opened=opened,
        vocabulary=bundle.text.vocab_size,
        end_tokens=bundle.tokens.eos,
    )
    assert walk(constraint, prompts, text) == allowed
