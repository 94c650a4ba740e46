"""Batching changes no answer: whatever runs beside a request, it gets the tokens that it gets alone."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from decoder_service.engine import EngineRequest, FeatureRows, SamplingParams, Span
from decoder_service.engine.batching import stepper as stepper_module
from decoder_service.engine.model import Piece, Step
from decoder_service.engine.onnx.phases import Phases
from decoder_service.engine.onnx.runner import Runner
from decoder_service.engine.sampler import Sampler
from decoder_service.request.prompt import PromptBuilder
from serving.bundle import Bundle
from serving.errors import Code
from tests.decoder_service.cases import TURNS, Case, followed, named
from tests.decoder_service.engines import text_request
from tests.decoder_service.stepping import Call, Stepping

LONGEST = 20


@pytest.fixture(scope="module")
def runner(bundle: Bundle) -> Runner:
    """The fp32 graph, which computes both phases."""
    runner = Runner(
        bundle.decoder_dir / "embedding.onnx",
        threads=1,
        layers=bundle.text.num_hidden_layers,
        head_size=bundle.text.head_dim,
    )
    runner.load("fp32", bundle.graph_path("fp32"))
    return runner


def keyed(request: EngineRequest, name: str) -> EngineRequest:
    """With a key for each grid: conversations of the same name have the same media."""
    return named(request, *(f"{name}/{n}" for n in range(len(request.media))))


@pytest.fixture(scope="module")
def requests(prompts: PromptBuilder, cases: dict[str, Case]) -> dict[str, EngineRequest]:
    """Text, images and videos, each also as a follow-up of itself; and texts of any length."""
    found = {name: keyed(cases[name].request(prompts, tokens=LONGEST), name) for name in TURNS}
    for name, request in list(found.items()):
        found[f"{name}, and more"] = followed(request, [*cases[name].greedy[:9], 20, 21, 22])
    rng = np.random.default_rng(5)
    for length in (1, 2, 33, 150):
        found[f"{length} words"] = text_request(rng.integers(0, 250, length).tolist(), LONGEST)
    return found


SAMPLINGS = {
    "greedy": SamplingParams(),
    "drawn": SamplingParams(1.0, 0.95, 50, seed=7),
    "penalised": SamplingParams(0.8, repetition_penalty=1.2, presence_penalty=0.5, logit_bias={40: 2.0}, seed=3),
}


@pytest.fixture(scope="module")
def alone(bundle: Bundle, runner: Runner, requests: dict[str, EngineRequest]) -> dict[tuple[str, str], list[int]]:
    """What each gets that is alone, its prompt read in one piece, nothing cached."""
    stepping = Stepping(bundle, runner, slots=1)
    return {
        (name, how): stepping.answer(dataclasses.replace(request, sampling=sampling)).tokens
        for name, request in requests.items()
        for how, sampling in SAMPLINGS.items()
    }


def test_alone_is_transformers(cases: dict[str, Case], alone: dict[tuple[str, str], list[int]]) -> None:
    """What the rest is compared with is right itself."""
    for name in TURNS:
        assert alone[name, "greedy"] == cases[name].greedy[:LONGEST]


NAMES = st.sampled_from(
    [*TURNS, *(f"{name}, and more" for name in TURNS), "1 words", "2 words", "33 words", "150 words"]
)


@dataclass(frozen=True)
class Visit:
    """A request's part in a mix: when it comes, when it is called off, how much it asks for.

    And how many steps late the features of its media are, each in turn.
    """

    name: str
    how: str
    comes: int
    leaves: int | None
    tokens: int
    late: tuple[int, ...] = ()


VISITS = st.lists(
    st.builds(
        Visit,
        name=NAMES,
        how=st.sampled_from(sorted(SAMPLINGS)),
        comes=st.integers(0, 30),
        leaves=st.none() | st.integers(0, 40),
        tokens=st.integers(1, LONGEST),
        late=st.lists(st.integers(0, 25), min_size=2, max_size=2).map(tuple),
    ),
    min_size=16,
    max_size=16,
)


@settings(deadline=None, max_examples=25, derandomize=True)
@given(
    visits=VISITS,
    slots=st.sampled_from([1, 3, 8, 16]),
    caches=st.sampled_from([None, 0, 4]),
    rooms=st.lists(st.integers(1, 60), min_size=1, max_size=5),
    budget=st.sampled_from([640, 1500, 100_000]),
)
def test_any_mix_gives_each_its_own_tokens(
    *,
    bundle: Bundle,
    runner: Runner,
    requests: dict[str, EngineRequest],
    alone: dict[tuple[str, str], list[int]],
    visits: list[Visit],
    slots: int,
    caches: int | None,
    rooms: list[int],
    budget: int,
) -> None:
    """16 requests with text, images and video, coming and called off at any step, short of slots and of memory.

    Features that come with the request or later, in any order. Chunks of any size, prefixes found
    or not: each has the tokens that it has alone, those that were called off the first of them, greedy or drawn from a
    seed.
    """
    stepping = Stepping(bundle, runner, slots=slots, caches=caches, rooms=rooms, budget=budget)
    here = {}
    step = 0
    while step <= max(visit.comes + max(visit.late) for visit in visits) or not stepping.stepper.idle:
        for index, visit in enumerate(visits):
            arrays = requests[visit.name].features.arrays
            if visit.comes == step:
                request = dataclasses.replace(
                    requests[visit.name],
                    features=FeatureRows(len(rows) for rows in arrays),
                    sampling=SAMPLINGS[visit.how],
                    max_new_tokens=visit.tokens,
                )
                here[index] = stepping.add(request)
            for number, (rows, late) in enumerate(zip(arrays, visit.late, strict=False)):
                if visit.comes + late == step:
                    stepping.put(here[index], number, rows)
            if visit.leaves is not None and visit.comes + visit.leaves == step:
                stepping.stepper.cancel(here[index])
        stepping.step()
        step += 1
    for index, visit in enumerate(visits):
        answer = stepping.answers[here[index]]
        expected = alone[visit.name, visit.how][: visit.tokens]
        assert answer.error is None
        if answer.finished is None:
            assert visit.leaves is not None
            assert answer.tokens == expected[: len(answer.tokens)]
        else:
            assert answer.tokens == expected
    assert stepping.slots.running == []


def test_ragged_rows_have_the_logits_of_single_ones(bundle: Bundle, runner: Runner) -> None:
    """Rows of other lengths in one step, with strangers' keys and values behind theirs: within 1e-4 of one alone."""
    stepping = Stepping(bundle, runner, slots=4)
    rng = np.random.default_rng(0)
    for buffer in stepping.cache.buffers:
        buffer[:, :, :64] = rng.normal(size=buffer[:, :, :64].shape)
    nothing = np.zeros((0, bundle.feature_width), np.float32)
    prompts = [rng.integers(0, 250, length).astype(np.int32) for length in (30, 3, 17)]

    def positions(start: int, stop: int) -> np.ndarray:
        return np.broadcast_to(np.arange(start, stop), (3, stop - start))

    def read(row: int, ids: np.ndarray, start: int, stop: int) -> Piece:
        return Piece(row, start, ids[start:stop], nothing, positions(start, stop))

    expected = np.stack([runner.run("fp32", piece=read(3, ids, 0, ids.size))[0] for ids in prompts])
    for row, ids in enumerate(prompts):
        runner.run("fp32", piece=read(row, ids, 0, 2))
        if ids.size > 3:
            runner.run("fp32", piece=read(row, ids, 2, ids.size - 1))
    lengths = np.array([ids.size - 1 for ids in prompts])
    last = np.array([ids[-1] for ids in prompts], np.int32)
    np.testing.assert_allclose(runner.run("fp32", step=Step(0, lengths, last, lengths)), expected, atol=1e-4)
    # Two of them beside a chunk of the third's prompt, in one run.
    two = Step(0, lengths[:2], last[:2], lengths[:2])
    runner.run("fp32", piece=read(2, prompts[2], 0, 5))
    logits = runner.run("fp32", step=two, piece=read(2, prompts[2], 5, prompts[2].size))
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    # Negative controls: a length that is one too long lets a stranger's key in, and another row a stranger's prompt.
    wrong = runner.run("fp32", step=Step(0, lengths + 1, last, lengths))
    assert np.abs(wrong - expected).max() > 1e-2
    runner.run("fp32", piece=read(3, prompts[0], 0, 5))
    wrong = runner.run("fp32", step=two, piece=read(3, prompts[2], 5, prompts[2].size))
    np.testing.assert_allclose(wrong[:2], expected[:2], atol=1e-4)
    assert np.abs(wrong[2] - expected[2]).max() > 1e-2


def test_a_follow_up_is_computed_from_where_it_differs(
    bundle: Bundle, runner: Runner, requests: dict[str, EngineRequest], alone: dict[tuple[str, str], list[int]]
) -> None:
    """The second question about the same picture, or video, is read from the first one's end, and answered right.

    The first one's answer is read again, unless those are kept, too: its keys and values are rounded in another way.
    """
    for name, kept in itertools.product(("one image", "video", "two turns"), (False, True)):
        stepping = Stepping(bundle, runner, caches=2, keep_answers=kept)
        first = dataclasses.replace(requests[name], max_new_tokens=10)
        assert stepping.answer(first).tokens == alone[name, "greedy"][:10]
        stepping.model.calls.clear()
        answer = stepping.answer(requests[f"{name}, and more"])
        assert answer.tokens == alone[f"{name}, and more", "greedy"]
        assert answer.prefilled is not None
        answered = first.token_ids.size + 9  # the tenth token was drawn, and never computed
        known = answered if kept else first.token_ids.size
        assert answer.prefilled.cached_tokens == known
        assert stepping.model.calls[0].read == (known, answered + 3)


def test_pictures_that_look_alike_to_the_tokens_are_not_mixed(
    bundle: Bundle, runner: Runner, requests: dict[str, EngineRequest]
) -> None:
    """Another picture of the same size, in the same words, has other tokens; a key that lies shows that it matters."""
    first = named(requests["one image"], "a")
    rows = np.ascontiguousarray(first.features.arrays[0][::-1])
    other = dataclasses.replace(named(first, "b"), features=FeatureRows.of(rows))
    expected = Stepping(bundle, runner).answer(other).tokens
    assert expected != Stepping(bundle, runner).answer(first).tokens
    stepping = Stepping(bundle, runner, caches=2)
    stepping.answer(first)
    answer = stepping.answer(other)
    assert answer.tokens == expected
    assert answer.prefilled is not None
    assert answer.prefilled.cached_tokens < other.token_ids.tolist().index(bundle.media_tokens.image) + 1
    lying = stepping.answer(dataclasses.replace(other, features=FeatureRows.of(rows + 1)))
    assert lying.tokens == expected
    unknown = stepping.answer(named(other))
    assert unknown.tokens == expected


def test_running_answers_get_a_step_between_any_two_chunks(
    bundle: Bundle, runner: Runner, requests: dict[str, EngineRequest]
) -> None:
    """While a long prompt is read, those that answer have a token with every chunk of it, in the same run."""
    stepping = Stepping(bundle, runner, rooms=(16,))
    running = [stepping.add(dataclasses.replace(requests["33 words"], max_new_tokens=60)) for _ in range(2)]
    while len(stepping.answers[running[1]].tokens) < 2:
        stepping.step()
    stepping.model.calls.clear()
    long = stepping.add(requests["150 words"])
    while not stepping.answers[long].tokens:
        stepping.step()
    calls = stepping.model.calls
    assert [call.read for call in calls] == [(start, min(start + 16, 150)) for start in range(0, 150, 16)]
    assert all(len(call.rows) == 2 for call in calls)


@pytest.mark.parametrize("steps", [0, 1, 3, 12])
def test_calling_off_frees_the_slot_at_once(
    bundle: Bundle, runner: Runner, requests: dict[str, EngineRequest], steps: int
) -> None:
    """Waiting, in the middle of its prompt, or answering: the very next step is the next request's."""
    stepping = Stepping(bundle, runner, slots=1, rooms=(20,))
    gone = stepping.add(requests["150 words"])
    for _ in range(steps):
        stepping.step()
    after = stepping.add(dataclasses.replace(requests["2 words"], max_new_tokens=1))
    stepping.stepper.cancel(gone)
    stepping.model.calls.clear()
    stepping.step()
    assert stepping.model.calls == [Call((), (0, 2))]
    assert stepping.answers[after].finished is not None
    assert stepping.stepper.idle


@pytest.mark.parametrize("room", [10_000, 40])
def test_a_run_that_fails_fails_those_in_it(
    bundle: Bundle, runner: Runner, requests: dict[str, EngineRequest], monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    """Whose fault it was cannot be told: all that were in it get INTERNAL, nothing is kept of them, and it goes on.

    Both requests answer by then, or one of them and a piece of the other's prompt are in one run.
    """
    stepping = Stepping(bundle, runner, caches=2, rooms=(room,))
    jobs = [stepping.add(requests[name]) for name in ("33 words", "150 words")]
    stepping.step()
    assert bool(stepping.answers[jobs[1]].tokens) == (room > 183)

    def broken(*parts: object) -> np.ndarray:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(stepping.model, "decode", broken)
        stepping.stepper.decode()
    for job in jobs:
        error = stepping.answers[job].error
        assert error is not None
        assert (error.code, error.reason) == (Code.INTERNAL, "ENGINE_FAILED")
    assert stepping.stepper.idle
    assert stepping.slots.running == stepping.slots.caches == []
    assert len(stepping.answer(requests["33 words"]).tokens) == LONGEST


class ByParts(Phases):
    """A graph that computes prompts in two parts, of which the second does all; it can fail between them."""

    def __init__(self, runner: Runner) -> None:
        super().__init__(runner, decode="fp32", prefill="fp32")
        self.together, self.parts, self.fails = False, 2, False

    def prefill(self, piece: Piece, *, ends: bool = True) -> Iterator[NDArray[np.float32] | None]:
        yield None
        if self.fails:
            self.fails = False
            raise RuntimeError("out of memory")
        yield from super().prefill(piece, ends=ends)


def test_a_part_of_a_chunk_that_fails_fails_its_request(
    bundle: Bundle, runner: Runner, requests: dict[str, EngineRequest], alone: dict[tuple[str, str], list[int]]
) -> None:
    """And nobody else: those who answer were not in it."""
    model = ByParts(runner)
    stepping = Stepping(bundle, runner, model=model, parts=(1,))
    running = stepping.add(requests["33 words"])
    while not stepping.answers[running].tokens:
        stepping.step()
    broken = stepping.add(requests["150 words"])
    after = stepping.add(requests["2 words"])
    model.fails = True
    stepping.finish()
    assert stepping.answers[broken].error is not None
    assert stepping.answers[running].tokens == alone["33 words", "greedy"]
    assert stepping.answers[after].tokens == alone["2 words", "greedy"]


def test_features_that_are_not_finite_fail_their_own_request(
    bundle: Bundle, runner: Runner, requests: dict[str, EngineRequest], alone: dict[tuple[str, str], list[int]]
) -> None:
    """Also where they would have been in one run with another's answer, which goes on as if alone."""
    stepping = Stepping(bundle, runner)
    running = stepping.add(requests["33 words"])
    stepping.step()
    good = requests["one image"]
    bad = stepping.add(
        dataclasses.replace(good, features=FeatureRows.of(np.full_like(good.features.arrays[0], np.nan)))
    )
    stepping.finish()
    assert stepping.answers[bad].error is not None
    assert stepping.answers[running].tokens == alone["33 words", "greedy"]


def test_a_poisoned_prefix_is_used_once(
    bundle: Bundle, runner: Runner, requests: dict[str, EngineRequest], alone: dict[tuple[str, str], list[int]]
) -> None:
    """A request whose keys overflow is cancelled before its logits show it: the next one fails, and empties the cache.

    The prefix differs from the later prompts in its last tokens, so that they copy it and leave it where it is.
    """
    good = requests["one image"]
    size = good.token_ids.size
    huge = FeatureRows.of(np.full_like(good.features.arrays[0], 3e38))  # finite, and their sums are not
    ids = good.token_ids.copy()
    ids[-3] += 1
    stepping = Stepping(bundle, runner, caches=2, rooms=(size - 1,))
    cancelled = stepping.add(dataclasses.replace(good, token_ids=ids, features=huge))
    stepping.step()
    assert cancelled.place.length == size - 1
    stepping.stepper.cancel(cancelled)
    assert len(stepping.slots.caches) == 1
    error = stepping.answer(good).error
    assert error is not None
    assert error.reason == "LOGITS_NOT_FINITE"
    assert stepping.slots.caches == []
    assert stepping.slots.running == []
    assert stepping.answer(good).tokens == alone["one image", "greedy"]


class NoMemory(Phases):
    """An allocation fails in the first decode step of several answers."""

    failed = False

    def decode(self, step: Step | None, piece: Piece | None = None) -> NDArray[np.float32]:
        if step is not None and step.lengths.size > 1 and not self.failed:
            self.failed = True
            raise MemoryError("Failed to allocate memory for requested buffer of size 1")
        return super().decode(step, piece)


def test_an_allocation_that_fails_has_its_reason(
    bundle: Bundle, runner: Runner, requests: dict[str, EngineRequest], alone: dict[tuple[str, str], list[int]]
) -> None:
    """The requests of that run fail with OUT_OF_MEMORY, and the engine goes on."""
    stepping = Stepping(bundle, runner, model=NoMemory(runner, decode="fp32", prefill="fp32"))
    failed = [stepping.add(requests[name]) for name in ("33 words", "2 words")]
    stepping.finish()
    for job in failed:
        error = stepping.answers[job].error
        assert error is not None
        assert (error.code, error.reason) == (Code.RESOURCE_EXHAUSTED, "OUT_OF_MEMORY")
    assert stepping.answer(requests["33 words"]).tokens == alone["33 words", "greedy"]


def test_a_bias_that_raises_fails_its_own_request(
    bundle: Bundle,
    runner: Runner,
    requests: dict[str, EngineRequest],
    alone: dict[tuple[str, str], list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the middle of its answer, beside another one, which goes on as if alone."""
    stepping = Stepping(bundle, runner)
    good, bad = (stepping.add(requests[name]) for name in ("33 words", "150 words"))
    stepping.step()
    monkeypatch.setattr(bad, "sampler", Sampler(SamplingParams(logit_bias={10**9: 1.0}), bad.request.token_ids))
    stepping.finish()
    error = stepping.answers[bad].error
    assert error is not None
    assert error.reason == "ENGINE_FAILED"
    assert stepping.answers[good].tokens == alone["33 words", "greedy"]
    assert stepping.slots.running == []


@pytest.mark.parametrize(
    "change",
    [
        {"media": ()},
        {"media": (Span(0, 1, (1, 1)),)},
        {"positions": np.zeros((3, 5), np.int64)},
        {"positions": np.zeros((1, 34), np.int64)},
    ],
)
def test_a_request_whose_parts_do_not_agree_is_refused(
    bundle: Bundle, runner: Runner, requests: dict[str, EngineRequest], change: dict
) -> None:
    """Media without features, features without media, or positions of something else."""
    request = requests["one image" if change.get("media") == () else "33 words"]
    with pytest.raises(ValueError, match=r"rows of features|positions"):
        Stepping(bundle, runner).add(dataclasses.replace(request, **change))


def test_a_prompt_tells_how_far_it_is_where_it_is_asked(
    bundle: Bundle, runner: Runner, prompts: PromptBuilder, cases: dict[str, Case]
) -> None:
    """After each chunk but the last its tokens are told; a request that does not ask hears nothing of them."""
    request = cases["two images"].request(prompts, tokens=2)
    stepping = Stepping(bundle, runner, rooms=(7,))
    assert stepping.answer(request).prefilling == []
    told = stepping.answer(dataclasses.replace(request, report_progress=True)).prefilling
    total = request.token_ids.size
    assert [one.done for one in told] == list(range(7, total, 7))
    assert {one.total for one in told} == {total}


def test_a_prompt_is_read_up_to_the_features_that_are_there(
    bundle: Bundle, runner: Runner, requests: dict[str, EngineRequest], alone: dict[tuple[str, str], list[int]]
) -> None:
    """Its runs end where the second image begins, another request passes, and the answer is that of one piece."""
    whole = requests["two images"]
    arrays = whole.features.arrays
    request = dataclasses.replace(
        named(whole), features=FeatureRows(len(rows) for rows in arrays), report_progress=True
    )
    stepping = Stepping(bundle, runner)
    job = stepping.add(request)
    first, second = job.prompt.media
    stepping.finish()
    stepping.put(job, 0, arrays[0])
    stepping.finish()
    assert stepping.model.calls == [Call((), (0, first.start)), Call((), (first.start, second.start))]
    assert [one.done for one in stepping.answers[job].prefilling] == [first.start, second.start]
    assert stepping.answer(requests["33 words"]).tokens == alone["33 words", "greedy"]
    stepping.put(job, 1, arrays[1])
    stepping.finish()
    assert stepping.answers[job].tokens == alone["two images", "greedy"]


def test_the_second_medium_alone_moves_nothing(
    bundle: Bundle, runner: Runner, requests: dict[str, EngineRequest], alone: dict[tuple[str, str], list[int]]
) -> None:
    """Features count from the first one on: with a gap before them they wait."""
    arrays = requests["two images"].features.arrays
    request = dataclasses.replace(requests["two images"], features=FeatureRows(len(rows) for rows in arrays))
    stepping = Stepping(bundle, runner)
    job = stepping.add(request)
    stepping.finish()
    stepping.model.calls.clear()
    stepping.put(job, 1, arrays[1])
    assert stepping.stepper.idle
    stepping.put(job, 0, arrays[0])
    stepping.finish()
    assert stepping.answers[job].tokens == alone["two images", "greedy"]


def test_what_was_read_before_a_prompt_was_called_off_serves_the_next(
    bundle: Bundle, runner: Runner, requests: dict[str, EngineRequest], alone: dict[tuple[str, str], list[int]]
) -> None:
    """Called off while it waits for the second image, it leaves the first one's keys and values to those after it."""
    arrays = requests["two images"].features.arrays
    request = dataclasses.replace(requests["two images"], features=FeatureRows(len(rows) for rows in arrays))
    stepping = Stepping(bundle, runner, slots=1, caches=1)
    job = stepping.add(request)
    stepping.put(job, 0, arrays[0])
    stepping.finish()
    assert len(stepping.slots.running) == 1
    stepping.stepper.cancel(job)
    assert stepping.slots.running == []
    answer = stepping.answer(requests["two images"])
    assert answer.tokens == alone["two images", "greedy"]
    assert answer.prefilled is not None
    assert answer.prefilled.cached_tokens == job.prompt.media[1].start


def test_waiting_for_features_is_neither_queueing_nor_prefill(
    bundle: Bundle, runner: Runner, requests: dict[str, EngineRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that goes on by a second with each look at it: the times told are those without the hours of waiting."""
    clock = itertools.count(0.0)
    monkeypatch.setattr(stepper_module, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    arrays = requests["two images"].features.arrays
    request = dataclasses.replace(requests["two images"], features=FeatureRows(len(rows) for rows in arrays))
    stepping = Stepping(bundle, runner)
    stepping.scheduler.read_ahead = False
    job = stepping.add(request, at=-10_000.0)
    stepping.put(job, 0, arrays[0], at=-5_000.0)
    stepping.stepper.read_ahead(True, at=next(clock))
    stepping.finish()
    now = next(clock)
    clock = itertools.count(now + 3_600)
    stepping.put(job, 1, arrays[1], at=next(clock))
    stepping.finish()
    told = stepping.answers[job].prefilled
    assert told is not None
    assert 0 < told.queue_seconds < 20
    assert 0 < told.prefill_seconds < 20


def test_features_must_be_as_many_as_were_announced(
    bundle: Bundle, runner: Runner, requests: dict[str, EngineRequest]
) -> None:
    """Other rows than announced, or the same twice, are refused; what is not there yet is never read."""
    arrays = requests["two images"].features.arrays
    rows = FeatureRows(len(array) for array in arrays)
    with pytest.raises(ValueError, match="rows"):
        rows.put(0, arrays[0][:-1])
    rows.put(1, arrays[1])
    assert (rows.available, rows.complete) == (0, False)
    with pytest.raises(ValueError, match="comes once"):
        rows.put(1, arrays[1])
    width = arrays[0].shape[1]
    with pytest.raises(ValueError, match="have come"):
        rows.rows(0, 1, width)
    rows.put(0, arrays[0])
    assert (rows.available, rows.complete) == (rows.count, True)
    size = len(arrays[0])
    piece = rows.rows(size - 1, size + 2, width)
    assert np.array_equal(piece, np.concatenate(arrays)[size - 1 : size + 2])
    with pytest.raises(ValueError, match="wide"):
        rows.rows(0, 1, width + 1)
