"""Tokens that a constraint leaves no choice for: computed together, beside others, and the answer is the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from decoder_service.engine import ConstraintError, EngineFinished, EngineRequest, FinishReason, SamplingParams
from decoder_service.engine.batching.stepper import MOST_KNOWN
from decoder_service.engine.onnx.runner import Runner
from serving.bundle import Bundle
from serving.errors import Code
from tests.decoder_service.engines import text_request
from tests.decoder_service.stepping import Answer, Stepping, two_graphs

TOKENS = 60
VOCABULARY = 250  # of it, those that the tests use


class Script:
    """Leaves every third token or so to the model, and forces those behind it.

    Args:
        vocabulary: Width of a mask.
        together: Whether it forces them; else its masks allow one token.
        longest: Most tokens that it forces at once.
    """

    def __init__(self, vocabulary: int, *, together: bool, longest: int = 5) -> None:
        self._free = np.zeros(vocabulary, np.bool_)
        self._free[:VOCABULARY] = True
        self._together = together
        self._longest = longest
        self._next: list[int] = []

    def mask(self) -> NDArray[np.bool_]:
        if self._together or not self._next:
            return self._free
        mask = np.zeros_like(self._free)
        mask[self._next[0]] = True
        return mask

    def forced(self) -> list[int]:
        forced, self._next = (self._next, []) if self._together else ([], self._next)
        return forced

    def advance(self, token: int) -> None:
        if self._next:
            assert self._next.pop(0) == token
            return
        self._next = [(7 * token + 11 * i) % VOCABULARY for i in range(token % (self._longest + 1))]


@pytest.fixture(scope="module")
def runner(bundle: Bundle) -> Runner:
    """Two graphs."""
    return two_graphs(bundle)


def requests(bundle: Bundle, *, together: bool | None, longest: int = 5) -> list[EngineRequest]:
    """Greedy and drawn answers that are constrained; None: not constrained."""
    rng = np.random.default_rng(5)
    drawn = SamplingParams(1.0, 0.95, 50, seed=7, presence_penalty=0.5, frequency_penalty=0.2, repetition_penalty=1.1)
    made = []
    for length, sampling in ((3, None), (40, drawn), (70, None)):
        script = None if together is None else Script(bundle.text.vocab_size, together=together, longest=longest)
        request = text_request(rng.integers(0, VOCABULARY, length).tolist(), TOKENS, sampling)
        made.append(dataclasses.replace(request, constraint=script))
    return made


def answered(stepping: Stepping, asked: Sequence[EngineRequest]) -> list[Answer]:
    """The answers of requests that run at once."""
    jobs = [stepping.add(request) for request in asked]
    stepping.finish()
    return [stepping.answers[job] for job in jobs]


@pytest.mark.parametrize("longest", [5, 3 * MOST_KNOWN])
def test_answers_are_those_of_one_token_at_a_time(bundle: Bundle, runner: Runner, longest: int) -> None:
    """The tokens are the same, greedy or drawn, with penalties, and in fewer runs."""
    slow, fast = Stepping(bundle, runner), Stepping(bundle, runner)
    expected = answered(slow, requests(bundle, together=False, longest=longest))
    found = answered(fast, requests(bundle, together=True, longest=longest))
    assert [answer.tokens for answer in found] == [answer.tokens for answer in expected]
    assert {answer.finished for answer in found} == {EngineFinished(FinishReason.LENGTH)}
    assert all(len(answer.tokens) == TOKENS for answer in found)
    assert len(fast.model.calls) < len(slow.model.calls) * 0.8
    together = [call.read for call in fast.model.calls if call.rows and call.read]
    assert together  # known tokens beside a decode step
    assert all(read is None or read[1] - read[0] <= MOST_KNOWN for read in together)


def test_a_free_answer_is_another(bundle: Bundle, runner: Runner) -> None:
    """Negative control: without the script the model writes something else."""
    free = answered(Stepping(bundle, runner), requests(bundle, together=None))
    forced = answered(Stepping(bundle, runner), requests(bundle, together=True))
    assert [answer.tokens for answer in free] != [answer.tokens for answer in forced]


def test_rows_beside_it_do_not_change(bundle: Bundle, runner: Runner) -> None:
    """An answer without a constraint has the same log probabilities alone and beside forced tokens."""
    free = dataclasses.replace(requests(bundle, together=None)[1], sampling=SamplingParams(1.0, seed=3, logprobs=2))
    (alone,) = answered(Stepping(bundle, runner), [free])
    beside = answered(Stepping(bundle, runner), [*requests(bundle, together=True), free])[-1]
    assert beside.tokens == alone.tokens
    assert [token.logprob for token in beside.drawn] == pytest.approx(
        [token.logprob for token in alone.drawn], abs=1e-5
    )


@pytest.mark.parametrize("parking", [0, 100_000])
def test_parked_answers_are_those_at_rest(bundle: Bundle, runner: Runner, parking: int) -> None:
    """Memory for one or two of three answers: keys and values come back, or are computed again in the same runs."""
    expected = [answer.tokens for answer in answered(Stepping(bundle, runner), requests(bundle, together=True))]
    tight = Stepping(bundle, runner, budget=192, growth=1, parking=parking, rooms=(30,))
    jobs = [tight.add(request) for request in requests(bundle, together=True)]
    parked = 0
    while not tight.stepper.idle:
        tight.step()
        parked = max(parked, len(tight.scheduler.parked))
    assert [tight.answers[job].tokens for job in jobs] == expected
    assert parked > 0


def test_an_end_token_among_them_ends_the_answer(bundle: Bundle, runner: Runner) -> None:
    """What is forced behind it is not part of the answer."""
    (whole, *_) = answered(Stepping(bundle, runner), requests(bundle, together=True, longest=40)[:1])
    at = next(index for index, token in enumerate(whole.tokens) if index > 5 and token not in whole.tokens[:index])
    ended = dataclasses.replace(
        requests(bundle, together=True, longest=40)[0], stop_token_ids=frozenset([whole.tokens[at]])
    )
    (answer,) = answered(Stepping(bundle, runner), [ended])
    assert answer.tokens == whole.tokens[: at + 1]
    assert answer.finished == EngineFinished(FinishReason.STOP)


def test_a_script_that_fails_fails_alone(bundle: Bundle, runner: Runner) -> None:
    """The request ends with an error, those beside it go on."""

    class Failing(Script):
        def forced(self) -> list[int]:
            raise RuntimeError("too complex")

    broken = dataclasses.replace(
        requests(bundle, together=None)[0], constraint=Failing(bundle.text.vocab_size, together=True)
    )
    good, bad = answered(Stepping(bundle, runner), [requests(bundle, together=True)[2], broken])
    assert bad.error is not None
    assert len(good.tokens) == TOKENS


def test_a_form_that_turns_out_too_complex_is_the_clients(bundle: Bundle, runner: Runner) -> None:
    """The error names the field, and what the constraint says."""

    class Complex(Script):
        def mask(self) -> NDArray[np.bool_]:
            raise ConstraintError("too many items")

    broken = dataclasses.replace(
        requests(bundle, together=None)[0], constraint=Complex(bundle.text.vocab_size, together=True)
    )
    (answer,) = answered(Stepping(bundle, runner), [broken])
    assert answer.error is not None
    assert (answer.error.code, answer.error.violations[0].field) == (
        Code.INVALID_ARGUMENT,
        "generation.response_format",
    )
    assert "too many items" in answer.error.message
