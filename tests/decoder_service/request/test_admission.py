"""Places, bytes, and room in the context."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest

from decoder_service.engine import Limit, SamplingParams
from decoder_service.request.admission import (
    SILENT_SECONDS,
    Admission,
    Limits,
    Place,
    answer_bound,
    check_positions,
    check_room,
)
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


class Clock:
    """A clock that tests move."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Scripted:
    """An engine of some slots whose requests all take the same time, and the admission in front of it.

    Args:
        slots: Requests that run at once.
        places: Requests that run or wait.
        seconds: Duration of each.
    """

    def __init__(self, slots: int, places: int, seconds: float) -> None:
        self.clock = Clock()
        self.admission = Admission(places, running=slots, max_bytes=1, clock=self.clock)
        self._slots, self._seconds = slots, seconds
        self._running: list[tuple[float, ExitStack]] = []
        self._waiting: list[tuple[Place, ExitStack]] = []

    def enter(self, left: float = math.inf) -> Place:
        """Admit a request. Raises ServiceError."""
        stack = ExitStack()
        place = stack.enter_context(self.admission.enter(left=left))
        self._waiting.append((place, stack))
        self._start()
        return place

    def pass_time(self, seconds: float) -> None:
        """Let the engine compute."""
        until = self.clock.now + seconds
        while self._running and self._running[0][0] <= until:
            self.clock.now, ended = self._running.pop(0)
            ended.close()
            self._start()
        self.clock.now = until

    def until_started(self, place: Place) -> float:
        """Let the engine compute until a request starts; returns how long that took."""
        began = self.clock.now
        while place.started is None:
            self.pass_time(self._running[0][0] - self.clock.now)
        return self.clock.now - began

    def _start(self) -> None:
        while self._waiting and len(self._running) < self._slots:
            place, stack = self._waiting.pop(0)
            place.start(0.0)
            self._running.append((self.clock.now + self._seconds, stack))


@pytest.fixture
def busy() -> Scripted:
    """Four slots whose requests started one after another, of 20 seconds each, and six that wait."""
    engine = Scripted(slots=4, places=10, seconds=20.0)
    for _ in range(12):
        engine.enter()
        engine.pass_time(5.0)
    for _ in range(6):
        engine.enter()
    return engine


def test_a_full_queue_says_when_a_place_is_free(busy: Scripted) -> None:
    """The delay is the time until a request ends: before it there is no place, after it there is one."""
    busy.enter()  # the tenth place
    with pytest.raises(ServiceError) as caught:
        busy.enter()
    delay = caught.value.retry_after
    assert caught.value.reason == "QUEUE_FULL"
    assert delay is not None
    busy.pass_time(0.5 * delay)
    with pytest.raises(ServiceError, match="which is the limit"):
        busy.enter()
    busy.pass_time(0.6 * delay)
    busy.enter()


def test_a_request_that_would_start_after_its_deadline_is_refused(busy: Scripted) -> None:
    """With the time that it would take; one with more time is admitted, and starts about then."""
    with pytest.raises(ServiceError, match="about 30 seconds, and the request has 10 left") as caught:
        busy.enter(left=10.0)
    error = caught.value
    assert (error.code, error.reason) == (Code.RESOURCE_EXHAUSTED, "DECODER_BUSY")
    assert error.retry_after is not None
    waited = busy.until_started(busy.enter(left=60.0))
    assert 20 < waited < 50


def test_after_the_delay_a_refused_request_starts_in_time(busy: Scripted) -> None:
    """The delay of DECODER_BUSY is long enough, and not twice as long as needed."""
    with pytest.raises(ServiceError) as caught:
        busy.enter(left=10.0)
    delay = caught.value.retry_after
    assert delay is not None
    busy.pass_time(delay / 2)
    with pytest.raises(ServiceError, match="has 10 left"):
        busy.enter(left=10.0)
    busy.pass_time(delay / 2)
    assert busy.until_started(busy.enter(left=10.0)) <= 10


def test_nothing_measured_refuses_nobody() -> None:
    """Before the first request has ended, no wait is known: the deadline alone refuses nobody."""
    engine = Scripted(slots=1, places=3, seconds=20.0)
    for _ in range(3):
        engine.enter(left=0.1)
    with pytest.raises(ServiceError) as caught:
        engine.enter()
    assert (caught.value.reason, caught.value.retry_after) == ("QUEUE_FULL", 1.0)


@contextmanager
def told(reason: str) -> Iterator[None]:
    """An error of that reason is raised in the block."""
    with pytest.raises(ServiceError) as caught:
        yield
    assert caught.value.reason == reason


async def test_silent_requests_give_way() -> None:
    """The one that has been silent longest loses its place when another request needs it; not before ten seconds."""
    clock = Clock()
    admission = Admission(2, running=1, max_bytes=10, clock=clock)
    hearing = [asyncio.Event(), asyncio.Event()]

    async def silent(number: int) -> None:
        with admission.enter() as place:
            place.hold_bytes(5)
            async with place.hearing(300):
                hearing[number].set()
                await asyncio.Event().wait()

    first = asyncio.create_task(silent(0))
    await hearing[0].wait()
    clock.now += 1
    second = asyncio.create_task(silent(1))
    await hearing[1].wait()
    clock.now += SILENT_SECONDS - 1.5
    with pytest.raises(ServiceError) as caught, admission.enter():
        pass
    assert (caught.value.reason, caught.value.retry_after) == ("QUEUE_FULL", 1.0)  # half a second, and at least one
    clock.now += 1
    with admission.enter():
        assert admission.inside == 2
        with told("MEDIA_TIMEOUT"):
            await first
        assert admission.held_bytes == 5
        assert not second.done()
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    assert (admission.inside, admission.held_bytes) == (0, 0)


async def test_a_message_in_the_moment_of_eviction_changes_nothing() -> None:
    """A request that has lost its place does not run on without one."""
    admission = Admission(1, running=1, max_bytes=1)
    with admission.enter() as place:
        with told("MEDIA_TIMEOUT"):
            async with place.hearing(300):
                place.evict(ServiceError(Code.DEADLINE_EXCEEDED, "MEDIA_TIMEOUT", "silent"))
        assert admission.inside == 0
        with told("MEDIA_TIMEOUT"):
            async with place.waiting():
                pass
    assert admission.inside == 0
