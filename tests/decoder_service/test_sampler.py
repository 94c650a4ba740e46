"""Drawing one token: the right set, the right frequencies, the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from decoder_service.engine import SamplingParams
from decoder_service.engine.sampler import Sampler

LOGITS = np.random.default_rng(0).normal(scale=2, size=5000).astype(np.float32)


def transformers_probabilities(logits: np.ndarray, params: SamplingParams) -> np.ndarray:
    """What transformers' warpers leave of a distribution."""
    scores = torch.from_numpy(logits.astype(np.float64))[None]
    scores = TemperatureLogitsWarper(params.temperature)(None, scores)
    if params.top_k:
        scores = TopKLogitsWarper(params.top_k)(None, scores)
    if params.top_p < 1:
        scores = TopPLogitsWarper(params.top_p)(None, scores)
    return torch.softmax(scores, -1)[0].numpy()


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(0.7, 0.8, 20),
        SamplingParams(1.0, 1.0, 5),
        SamplingParams(0.5, 0.3, 0),  # a nucleus found among the likeliest
        SamplingParams(1.5, 0.97, 0),  # a nucleus of thousands
        SamplingParams(1.0, 1.0, 0),
    ],
    ids=str,
)
def test_frequencies_are_those_of_transformers(params: SamplingParams) -> None:
    """Draws fall where transformers' warpers leave probability, as often as they leave it."""
    expected = transformers_probabilities(LOGITS, params)
    sampler = Sampler(params)
    count = 4000
    drawn = np.bincount([sampler.draw(LOGITS) for _ in range(count)], minlength=LOGITS.size)
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

    def draw(seed: int) -> list[int]:
        sampler = Sampler(SamplingParams(1.0, 0.9, 50, seed))
        return [sampler.draw(LOGITS) for _ in range(30)]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)
    assert draw(2**31 - 1) == draw(2**31 - 1)


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
    params = SamplingParams(temperature, top_p, top_k, 3)
    token = Sampler(params).draw(logits)
    assert 0 <= token < logits.size
    if 0 < top_k < logits.size:
        assert logits[token] >= np.sort(logits)[-top_k]


@pytest.mark.parametrize(
    "params", [SamplingParams(), SamplingParams(1.0, 1.0, 1), SamplingParams(1.0, 1e-6, 0)], ids=str
)
def test_nothing_to_choose_is_greedy(params: SamplingParams) -> None:
    """Temperature 0, one token, or a nucleus of one: the likeliest."""
    assert Sampler(params).draw(LOGITS) == int(LOGITS.argmax())


def test_not_a_number_is_an_error() -> None:
    """A broken model says so instead of drawing anything."""
    with pytest.raises(FloatingPointError):
        Sampler(SamplingParams(1.0)).draw(np.array([1, np.nan, 2], np.float32))
