"""A model that thinks, through all three services: what it thinks comes apart, and later turns are transformers'."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

import exporter
import triptych
from tests import templates
from tests.checkpoints import make_checkpoint
from tests.pictures import noise, png
from tests.reference import Reference
from tests.system import triptych_system
from vlm.v1 import gateway_pb2, gateway_pb2_grpc

TOKENS = 8
QUESTION = "Where is the star?"
PICTURE = png(noise(160, 128, 11))


@dataclass(frozen=True)
class Thinker:
    """A small random model whose chat template is that of a model that always thinks."""

    address: str
    client: triptych.Client
    reference: Reference


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Thinker]:
    """It is served in fp32."""
    folder: Path = tmp_path_factory.mktemp("thinking")
    checkpoint = make_checkpoint(folder / "checkpoint", template=templates.ALWAYS)
    bundle = exporter.export(checkpoint, folder / "bundle", precision="fp32", progress=False)
    with triptych_system(bundle.root) as address, triptych.Client(address) as client:
        yield Thinker(address, client, Reference(checkpoint))


def test_an_answer_that_is_cut_while_it_thinks_has_no_text(thinker: Thinker) -> None:
    """The template has opened the reasoning, and this model never closes it: the tokens are transformers'."""
    answer = thinker.client.answer([triptych.user(QUESTION)], max_tokens=TOKENS, stop=["e"])
    tokens = thinker.reference.generate(thinker.reference.inputs([("user", [QUESTION])]), TOKENS)
    assert list(answer.token_ids) == tokens
    assert (answer.text, answer.finish_reason) == ("", "length")
    assert answer.reasoning.strip("\n") == thinker.reference.tokenizer.decode(tokens).strip("\n")
    assert answer.usage.reasoning_tokens == answer.usage.completion_tokens == TOKENS


def test_what_follows_the_mark_is_the_answer(thinker: Thinker) -> None:
    """Also beside a picture, and with log probabilities, one for each token."""
    mark = thinker.reference.tokenizer.convert_tokens_to_ids("</think>")
    answer = thinker.client.answer(
        [triptych.user(triptych.Image(PICTURE), QUESTION)], max_tokens=3, logit_bias={mark: 100}, logprobs=0
    )
    assert answer.token_ids == (mark,) * 3
    assert (answer.reasoning, answer.text) == ("", "</think></think>")  # only the first is a mark
    assert answer.usage.reasoning_tokens == 1
    assert [position.chosen.text for position in answer.logprobs] == ["</think>"] * 3


def test_a_second_turn_has_transformers_ids(thinker: Thinker) -> None:
    """The reasoning goes back apart or in the content, and the template leaves it out either way."""
    tokenizer = thinker.reference.tokenizer
    first = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "I look.\n</think>\n\nLeft."}]
    expected = tokenizer.apply_chat_template(
        [*first, {"role": "user", "content": "Sure?"}], tokenize=True, return_dict=False, add_generation_prompt=True
    )
    for answered in (
        triptych.assistant("I look.\n</think>\n\nLeft."),
        triptych.assistant("Left.", reasoning="I look."),
    ):
        messages = [triptych.user(QUESTION), answered, triptych.user("Sure?")]
        answer = thinker.client.answer(messages, max_tokens=1, return_prompt_token_ids=True)
        assert list(answer.prompt_token_ids) == expected
        assert thinker.client.count_tokens(messages) == len(expected)


def test_it_cannot_be_told_not_to_think(thinker: Thinker) -> None:
    """Neither where it is asked nor where its prompt is counted; what it does anyway may be asked for."""
    question = [triptych.user(QUESTION)]
    assert thinker.client.count_tokens(question, enable_thinking=True) == thinker.client.count_tokens(question)
    for call in (thinker.client.answer, thinker.client.count):
        with pytest.raises(triptych.TriptychError) as caught:
            call(question, enable_thinking=False)  # type: ignore[operator]
        assert caught.value.reason == "THINKING_NOT_OPTIONAL"
        assert caught.value.violations[0].field == "enable_thinking"


def test_the_recommended_sampling_is_told_and_taken(thinker: Thinker) -> None:
    """As generation_config.json has it: the same as the options written out, and another answer than the greedy one."""
    with grpc.insecure_channel(thinker.address) as channel:
        listed = gateway_pb2_grpc.GatewayStub(channel).ListModels(gateway_pb2.ListModelsRequest())
    (model,) = listed.models
    told = model.recommended_sampling
    assert (round(told.temperature, 6), round(told.top_p, 6), told.top_k, told.repetition_penalty) == (0.7, 0.8, 20, 1)
    assert (model.thinks, model.thinking_optional) == (True, False)
    question = [triptych.user(QUESTION)]
    taken = thinker.client.answer(question, max_tokens=TOKENS, seed=5, recommended_sampling=True)
    written = thinker.client.answer(question, max_tokens=TOKENS, seed=5, temperature=0.7)
    greedy = thinker.client.answer(question, max_tokens=TOKENS, seed=5)
    assert taken.token_ids == written.token_ids != greedy.token_ids


def test_an_answer_in_circles_is_ended_where_it_is_asked_for(thinker: Thinker) -> None:
    """As a limit, at the token that completes the circle."""
    letter = 70
    detection = {"max_pattern_size": 4, "min_pattern_size": 2, "min_count": 3}
    question = [triptych.user(QUESTION)]
    for given, length in ((detection, 6), ({"max_pattern_size": 0}, 10)):
        answer = thinker.client.answer(question, max_tokens=10, logit_bias={letter: 100}, repetition_detection=given)
        assert answer.token_ids == (letter,) * length
        assert answer.finish_reason == "length"
