"""Places, bytes, and room in the context."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from decoder_service.engine import Limit, SamplingParams
from decoder_service.request.admission import Admission, Limits, answer_bound, check_positions, check_room
from decoder_service.request.generation import Generation, RecommendedSampling
from decoder_service.settings import DecoderSettings
from serving.errors import Code, ServiceError


def test_places_are_bounded_and_come_back() -> None:
    """One more than there are places is refused with a delay; a place comes back, also after a failure."""
    admission = Admission(2, running=1, max_bytes=10)
    with admission.enter(), admission.enter():
        with pytest.raises(ServiceError, match="2 requests") as caught, admission.enter():
            pass
        assert (caught.value.code, caught.value.reason) == (Code.RESOURCE_EXHAUSTED, "QUEUE_FULL")
        assert caught.value.retry_after is not None
        assert caught.value.retry_after >= 1
    with pytest.raises(RuntimeError), admission.enter():
        raise RuntimeError
    assert admission.inside == 0


def test_bytes_are_bounded_and_come_back() -> None:
    """Features of all requests together are bounded; a request that leaves gives its bytes back."""
    admission = Admission(3, running=1, max_bytes=10)
    with admission.enter() as first:
        first.hold_bytes(4)
        first.hold_bytes(6)
        with admission.enter() as second:
            with pytest.raises(ServiceError, match="max_buffered_feature_bytes, which is 10") as caught:
                second.hold_bytes(5)
            assert caught.value.retry_after is not None
            second.hold_bytes(4)
            first.hold_bytes(0)
            second.hold_bytes(10)
    assert admission.held_bytes == 0


def test_room_for_one_token_is_enough() -> None:
    """A prompt may leave a single token free; none is too long, and a longer answer is the client's to shorten."""
    assert check_room(99, None, 100) == 1
    assert check_room(99, 1, 100) == 1
    with pytest.raises(ServiceError, match="context of 100") as caught:
        check_room(100, None, 100)
    assert (caught.value.code, caught.value.reason) == (Code.RESOURCE_EXHAUSTED, "PROMPT_TOO_LONG")
    assert caught.value.violations[0].field == "messages"
    with pytest.raises(ServiceError, match="leaves at most 1 of the context of 100") as caught:
        check_room(99, 2, 100)
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert caught.value.violations[0].field == "generation.max_tokens"


def test_positions_for_the_prompt_and_the_answer() -> None:
    """The greatest position of a prompt may lie before the answer's, as in a long video; each must be there."""
    used = np.array([[0, 50, 5, 6], [0, 4, 5, 6]])
    assert check_positions(used, None, 51) == 45
    assert check_positions(used, 45, 51) == 45
    with pytest.raises(ServiceError, match="reach position 50 of the model's 50") as caught:
        check_positions(used, None, 50)
    assert (caught.value.code, caught.value.reason) == (Code.RESOURCE_EXHAUSTED, "PROMPT_TOO_LONG")
    with pytest.raises(ServiceError, match="reduces it to 45") as caught:
        check_positions(used, 46, 51)
    assert caught.value.code is Code.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("asked", "free", "expected"),
    [
        (9, 10, (9, Limit.MAX_TOKENS)),
        (10, 10, (10, Limit.MAX_TOKENS)),
        (11, 10, (10, Limit.CONTEXT)),
        (None, 50, (20, Limit.SERVER)),
        (None, 20, (20, Limit.SERVER)),
        (None, 19, (19, Limit.CONTEXT)),
        (30, 50, (30, Limit.MAX_TOKENS)),
    ],
)
def test_the_tightest_limit_bounds_an_answer(asked: int | None, free: int, expected: tuple[int, Limit]) -> None:
    """A request's own number may pass the server's default; what is free bounds both, and is named for what made it."""
    generation = Generation(SamplingParams(), asked)
    limits = Limits(context_length=100, default_max_tokens=20)
    assert answer_bound(generation, free, limits) == expected
    small = dataclasses.replace(limits, context_limit=Limit.KV_CACHE)
    bound, limit = expected
    assert answer_bound(generation, free, small) == (bound, Limit.KV_CACHE if limit is Limit.CONTEXT else limit)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (None, (0.0, 1.0, 0, 0.0, 1.0)),
        ({}, (0.0, 1.0, 0, 0.0, 1.0)),
        ({"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20}, (0.7, 0.8, 20, 0.0, 1.0)),
        ({"do_sample": True}, (1.0, 1.0, 0, 0.0, 1.0)),
        ({"temperature": 0.6}, (0.6, 1.0, 0, 0.0, 1.0)),
        ({"do_sample": False, "temperature": 0.6, "top_p": 0.9}, (0.0, 0.9, 0, 0.0, 1.0)),
        ({"min_p": 0.1, "repetition_penalty": 1.05}, (0.0, 1.0, 0, 0.1, 1.05)),
        ({"top_p": None, "top_k": None, "min_p": None, "repetition_penalty": None}, (0.0, 1.0, 0, 0.0, 1.0)),
    ],
)
def test_generation_config(tmp_path: Path, config: dict | None, expected: tuple[float, ...]) -> None:
    """What the checkpoint recommends; a temperature only where it samples, then 1 unless it names another."""
    path = tmp_path / "generation_config.json"
    if config is not None:
        path.write_text(json.dumps(config))
    assert RecommendedSampling.load(path) == RecommendedSampling(*expected)  # type: ignore[arg-type]


@pytest.mark.parametrize("config", [{"temperature": 3}, {"top_p": 0}, {"min_p": 2}, {"repetition_penalty": 0}])
def test_a_broken_generation_config_is_refused(tmp_path: Path, config: dict) -> None:
    """Values that cannot be drawn with stop the start, not the first request."""
    path = tmp_path / "generation_config.json"
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=next(iter(config))):
        RecommendedSampling.load(path)


def test_the_context_is_the_models_or_less() -> None:
    """0 takes the model's own; a number never passes it; 32768 unless told otherwise."""
    assert DecoderSettings(bundle=Path("b")).context_limit(262144) == 32768
    assert DecoderSettings(bundle=Path("b"), context_length=0).context_limit(262144) == 262144
    assert DecoderSettings(bundle=Path("b"), context_length=9000).context_limit(4096) == 4096
