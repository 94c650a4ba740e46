"""Drawing tokens: the right set, the right frequencies, the same for the same seed whoever is beside it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from decoder_service.engine import SamplingParams, TokenDrawn
from decoder_service.engine.sampler import NotDrawn, Sampler, draw

LOGITS = np.random.default_rng(0).normal(scale=2, size=5000).astype(np.float32)
NOTHING = np.zeros(0, np.int32)


def drawn_by(sampler: Sampler, logits: np.ndarray = LOGITS) -> TokenDrawn:
    """One token of one row."""
    (token,) = draw([sampler], logits[None].copy())
    assert isinstance(token, TokenDrawn)
    return token


def tokens_alone(params: SamplingParams, rows: list[np.ndarray]) -> list[int]:
    """The answer of a request that is alone, given the logits of its steps."""
    sampler = Sampler(params, NOTHING)
    return [drawn_by(sampler, row).token_id for row in rows]


def transformers_probabilities(logits: np.ndarray, params: SamplingParams) -> np.ndarray:
    """What transformers' warpers leave of a distribution."""
    scores = torch.from_numpy(logits.astype(np.float64))[None]
    scores = TemperatureLogitsWarper(params.temperature)(None, scores)
    if params.top_k:
        scores = TopKLogitsWarper(params.top_k)(None, scores)
    if params.top_p < 1:
        scores = TopPLogitsWarper(params.top_p)(None, scores)
    if params.min_p:
        scores = MinPLogitsWarper(params.min_p)(None, scores)
    return torch.softmax(scores, -1)[0].numpy()


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(0.7, 0.8, 20),
        SamplingParams(1.0, 1.0, 5),
        SamplingParams(0.5, 0.3, 0),  # a nucleus found among the likeliest
        SamplingParams(1.5, 0.97, 0),  # a nucleus of thousands
        SamplingParams(1.0, 1.0, 0),
        SamplingParams(1.0, 1.0, 0, min_p=0.05),
        SamplingParams(3.0, 1.0, 0, min_p=0.02),  # a floor that thousands pass
        SamplingParams(1.0, 0.9, 100, min_p=0.1),
    ],
    ids=str,
)
def test_frequencies_are_those_of_transformers(params: SamplingParams) -> None:
    """Draws fall where transformers' warpers leave probability, as often as they leave it."""
    expected = transformers_probabilities(LOGITS, params)
    sampler = Sampler(params, NOTHING)
    count = 4000
    drawn = np.bincount([drawn_by(sampler).token_id for _ in range(count)], minlength=LOGITS.size)
    assert not drawn[expected == 0].any()
    often = expected * count > 5
    seen = np.append(drawn[often], drawn[~often].sum())
    wanted = np.append(expected[often], expected[~often].sum()) * count
    seen, wanted = seen[wanted > 0], wanted[wanted > 0]
    # Chi-squared of n degrees of freedom is over n + 5 sqrt(2n) once in more than 100,000 times; the seed is fixed.
    degrees = max(len(wanted) - 1, 1)
    assert ((seen - wanted) ** 2 / wanted).sum() < degrees + 5 * np.sqrt(2 * degrees)


def test_a_seed_repeats_and_another_differs() -> None:
    """The same seed draws the same tokens; another draws others."""

    def answer(seed: int) -> list[int]:
        return tokens_alone(SamplingParams(1.0, 0.9, 50, seed), [LOGITS] * 30)

    assert answer(1) == answer(1)
    assert answer(1) != answer(2)
    assert answer(2**31 - 1) == answer(2**31 - 1)


PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.0]),
    top_p=st.sampled_from([1.0, 0.95, 0.2]),
    top_k=st.sampled_from([0, 1, 20, 1024, 3000]),
    seed=st.integers(0, 2**31 - 1),
    min_p=st.sampled_from([0.0, 0.1]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    presence_penalty=st.sampled_from([0.0, 0.8]),
    frequency_penalty=st.sampled_from([0.0, 0.5]),
    logit_bias=st.sampled_from([{}, {3: 4.0, 4999: -100.0}]),
    logprobs=st.sampled_from([None, 0, 3]),
)


@settings(deadline=None, max_examples=40)
@given(st.lists(PARAMS, min_size=1, max_size=6), st.integers(0, 2**31 - 1))
def test_neighbours_change_nothing(params: list[SamplingParams], seed: int) -> None:
    """Each row of a batch draws the tokens, and reports the log probabilities, that it draws and reports alone."""
    steps = np.random.default_rng(seed).normal(scale=2, size=(4, len(params), LOGITS.size)).astype(np.float32)
    together = [Sampler(p, np.arange(9, dtype=np.int32)) for p in params]
    alone = [Sampler(p, np.arange(9, dtype=np.int32)) for p in params]
    for logits in steps:
        expected = [drawn_by(sampler, row) for sampler, row in zip(alone, logits, strict=True)]
        assert draw(together, logits.copy()) == expected


@settings(deadline=None)
@given(
    st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=40),
    st.floats(0.01, 2),
    st.floats(0.01, 1),
    st.integers(0, 50),
)
def test_a_draw_is_always_possible(values: list[float], temperature: float, top_p: float, top_k: int) -> None:
    """However flat, steep or tied the logits, the drawn token is one that transformers would keep, or nearly so."""
    logits = np.array(values, np.float32)
    token = drawn_by(Sampler(SamplingParams(temperature, top_p, top_k, 3), NOTHING), logits).token_id
    assert 0 <= token < logits.size
    if 0 < top_k < logits.size:
        assert logits[token] >= np.sort(logits)[-top_k]


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(1.0, 1.0, 1),
        SamplingParams(1.0, 1e-6, 0),
        SamplingParams(1.0, 1.0, 0, min_p=1.0),
    ],
    ids=str,
)
def test_nothing_to_choose_is_greedy(params: SamplingParams) -> None:
    """Temperature 0, one token, a nucleus of one, or a floor that one passes: the likeliest."""
    assert drawn_by(Sampler(params, NOTHING)).token_id == int(LOGITS.argmax())


def test_not_a_number_fails_its_own_row() -> None:
    """A row that is not finite has no token; the others have theirs."""
    logits = np.stack([LOGITS, LOGITS, LOGITS])
    logits[1, 5] = np.nan
    drawn = draw([Sampler(SamplingParams(1.0, seed=n, logprobs=1), NOTHING) for n in range(3)], logits)
    assert isinstance(drawn[1], NotDrawn)
    assert drawn[0] == drawn_by(Sampler(SamplingParams(1.0, seed=0, logprobs=1), NOTHING))
    assert drawn[2] == drawn_by(Sampler(SamplingParams(1.0, seed=2, logprobs=1), NOTHING))


class Raises(Sampler):
    """What it does to the logits, or with its token, raises."""

    adjusts = True

    def __init__(self, step: str, params: SamplingParams) -> None:
        super().__init__(params, NOTHING)
        self._step = step

    def adjust(self, logits: np.ndarray) -> None:
        logits[:] = np.nan
        if self._step == "adjust":
            raise IndexError("a token that the model does not know")
        logits[:] = 0

    def remember(self, token: int) -> None:
        raise IndexError("a token that the model does not know")


@pytest.mark.parametrize("step", ["adjust", "remember"])
@pytest.mark.parametrize("params", [SamplingParams(), SamplingParams(1.0, seed=1)])
def test_a_sampler_that_raises_fails_its_own_row(step: str, params: SamplingParams) -> None:
    """The log is told why, and its neighbours draw what they draw alone."""
    others = [SamplingParams(1.0, seed=0, logit_bias={3: 2.0}), SamplingParams(0.0, logprobs=2)]
    first, second = (Sampler(other, NOTHING) for other in others)
    drawn = draw([first, Raises(step, params), second], np.stack([LOGITS] * 3))
    assert isinstance(drawn[1], NotDrawn)
    assert "a token that the model does not know" in drawn[1].why
    assert [drawn[0], drawn[2]] == [drawn_by(Sampler(other, NOTHING)) for other in others]


def test_repetition_penalty_is_that_of_transformers() -> None:
    """Tokens of prompt and answer alike are made less likely, as transformers does it, and each of them once."""
    prompt = np.argsort(-LOGITS)[[0, 2, 4, 0]].astype(np.int32)
    sampler = Sampler(SamplingParams(repetition_penalty=1.4), prompt)
    processor = RepetitionPenaltyLogitsProcessor(1.4)
    seen = prompt.tolist()
    for _ in range(12):
        scores = processor(torch.tensor([seen]), torch.from_numpy(LOGITS.copy())[None])
        expected = int(scores.argmax())
        assert drawn_by(sampler).token_id == expected
        seen.append(expected)
    assert len(set(seen)) > 8  # it does something


def test_presence_and_frequency_count_the_answer_alone() -> None:
    """Presence is taken once, frequency once for each time, and the prompt is of no account."""
    logits = np.array([5.0, 4.0, 3.0, 0.0], np.float32)
    prompt = np.array([0, 0, 1], np.int32)

    def answer(**penalty: float) -> list[int]:
        sampler = Sampler(SamplingParams(**penalty), prompt)  # type: ignore[arg-type]
        return [drawn_by(sampler, logits).token_id for _ in range(6)]

    assert answer() == [0] * 6
    assert answer(presence_penalty=1.5) == [0, 1, 0, 0, 0, 0]  # then 3.5, 2.5 and 3
    assert answer(frequency_penalty=1.5) == [0, 1, 0, 2, 1, 0]
    assert answer(presence_penalty=-1.0) == [0] * 6


def test_bias_decides_where_it_is_great() -> None:
    """A bias of 100 makes a token certain, one of -100 makes it impossible, greedy or drawn."""
    best, other = int(LOGITS.argmax()), 17
    for temperature in (0.0, 1.0):
        assert drawn_by(Sampler(SamplingParams(temperature, logit_bias={other: 100.0}), NOTHING)).token_id == other
        sampler = Sampler(SamplingParams(temperature, logit_bias={best: -100.0}), NOTHING)
        assert best not in {drawn_by(sampler).token_id for _ in range(50)}


def test_log_probabilities_are_the_models_own() -> None:
    """Of the raw logits, whatever temperature, penalties and bias do; the alternatives are the likeliest, in order."""
    params = SamplingParams(0.5, top_k=3, logit_bias={17: 100.0}, presence_penalty=2.0, logprobs=5)
    expected = torch.log_softmax(torch.from_numpy(LOGITS.astype(np.float64)), -1).numpy()
    sampler = Sampler(params, NOTHING)
    for _ in range(2):
        drawn = drawn_by(sampler)
        assert drawn.token_id == 17
        assert drawn.logprob == pytest.approx(expected[17], abs=1e-6)
        assert [a.token_id for a in drawn.alternatives] == np.argsort(-expected, kind="stable")[:5].tolist()
        assert [a.logprob for a in drawn.alternatives] == pytest.approx(np.sort(expected)[::-1][:5], abs=1e-6)
    plain = drawn_by(Sampler(dataclasses.replace(params, logprobs=None), NOTHING))
    assert (plain.logprob, plain.alternatives) == (None, ())
    none = drawn_by(Sampler(dataclasses.replace(params, logprobs=0), NOTHING))
    assert none.logprob is not None
    assert none.alternatives == ()


class Only:
    """A constraint that allows the same tokens each time."""

    def __init__(self, *allowed: int) -> None:
        self._mask = np.zeros(LOGITS.size, np.bool_)
        self._mask[list(allowed)] = True

    def mask(self) -> np.ndarray:
        return self._mask

    def forced(self) -> list[int]:
        return []

    def advance(self, token: int) -> None: ...


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_no_stop_token_comes_before_its_time(temperature: float) -> None:
    """The first tokens are none of those that end an answer, however likely these are; then they may come."""
    ends = [3, 4, 5]
    params = SamplingParams(temperature, seed=1, logit_bias=dict.fromkeys(ends, 100.0), min_tokens=4)
    sampler = Sampler(params, NOTHING, stop_token_ids=ends)
    drawn = [drawn_by(sampler).token_id in ends for _ in range(6)]
    assert drawn == [False] * 4 + [True] * 2
    free = Sampler(dataclasses.replace(params, min_tokens=0), NOTHING, stop_token_ids=ends)
    assert drawn_by(free).token_id in ends


def test_a_complete_form_ends_before_the_fewest_tokens() -> None:
    """Where a constraint allows nothing but a stop token it is drawn; where it allows another, that one is."""
    params = SamplingParams(logit_bias={3: 100.0}, min_tokens=4)
    assert drawn_by(Sampler(params, NOTHING, Only(3), stop_token_ids=[3])).token_id == 3
    assert drawn_by(Sampler(params, NOTHING, Only(3, 9), stop_token_ids=[3])).token_id == 9
