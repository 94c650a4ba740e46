"""An adapter for requests with images, and LongRoPE, in one batch: each request gets what it gets alone.

The checkpoint is Phi-4-multimodal's, whose requests with images use an adapter for all of their tokens, and whose
sequences have other rotations from a length on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import exporter
from decoder_service.engine import EngineRequest, FeatureRows, SamplingParams, TokenDrawn
from decoder_service.engine.batching.worker import BatchConfig, load
from decoder_service.engine.model import Piece
from decoder_service.engine.onnx.runner import Runner
from exporter.divergence import Asked
from serving.bundle import Bundle
from tests.decoder_service.cases import followed
from tests.decoder_service.engine.batching.test_forced import Script
from tests.decoder_service.stepping import Stepping, two_graphs
from tests.exporter.families.phi4_multimodal.cases import CASES, TOKENS, asked, logits_of
from tests.phi4_checkpoints import ORIGINAL, make_phi4, reference
from tests.threads import one_thread


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Models this small are slower on several threads."""
    with one_thread():
        yield


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random checkpoint."""
    return make_phi4(tmp_path_factory.mktemp("phi4") / "source", "native")


@pytest.fixture(scope="module")
def exact(source: Path) -> Bundle:
    """Its fp32 bundle."""
    return exporter.export(source, source.parent / "fp32", precision="fp32", progress=False)


@pytest.fixture(scope="module")
def rounded(source: Path) -> Bundle:
    """At INT4, with the INT8 graph for prompts."""
    return exporter.export(source, source.parent / "int4", calibrate=False, progress=False)


@pytest.fixture(scope="module")
def questions(exact: Bundle) -> dict[str, Asked]:
    """Prompts with and without an image, shorter and longer than the short factors reach, and across."""
    return {name: asked(exact, *size) for name, size in CASES.items()}


def _request(question: Asked, name: str, tokens: int = TOKENS, **sampling: Any) -> EngineRequest:
    spans = tuple(dataclasses.replace(span, key=name) for span in question.prompt.media)
    return EngineRequest(
        request_id=name,
        token_ids=question.prompt.engine_token_ids,
        positions=question.prompt.positions,
        features=FeatureRows.of(question.features) if spans else FeatureRows.of(),
        media=spans,
        sampling=SamplingParams(**sampling),
        max_new_tokens=tokens,
        stop_token_ids=frozenset(),
    )


@pytest.fixture(scope="module")
def requests(questions: dict[str, Asked]) -> dict[str, EngineRequest]:
    """Greedy requests."""
    return {name: _request(question, name) for name, question in questions.items()}


@pytest.fixture(scope="module")
def runner(exact: Bundle) -> Runner:
    """Its graph, which computes both phases."""
    return load(BatchConfig(exact, threads=1))[0]


@pytest.fixture(scope="module")
def alone(exact: Bundle, runner: Runner, requests: dict[str, EngineRequest]) -> dict[str, list[int]]:
    """What each gets that is alone."""
    stepping = Stepping(exact, runner, slots=1)
    return {name: stepping.answer(request).tokens for name, request in requests.items()}


def test_alone_is_transformers(source: Path, questions: dict[str, Asked], alone: dict[str, list[int]]) -> None:
    """With the adapter merged for images, and every token from a pass over the whole sequence before it."""
    models = {adapted: reference(source, adapted=adapted) for adapted in (False, True)}
    for name, question in questions.items():
        logits = logits_of(models[len(question.features) > 0], question, alone[name])
        assert alone[name] == logits[:-1].argmax(-1).tolist()


@pytest.mark.parametrize("two", [False, True], ids=["one graph", "two graphs"])
@pytest.mark.parametrize(("caches", "rooms", "parts"), [(None, (10_000,), (1000,)), (4, (7, 30), (1, 2))])
def test_together_each_is_as_alone(
    *,
    exact: Bundle,
    runner: Runner,
    requests: dict[str, EngineRequest],
    alone: dict[str, list[int]],
    two: bool,
    caches: int | None,
    rooms: tuple[int, ...],
    parts: tuple[int, ...],
) -> None:
    """Twice, the second time after the others, so that prefixes are found; chunks of any size."""
    graphs = two_graphs(exact) if two else runner
    stepping = Stepping(exact, graphs, slots=len(requests), caches=caches, rooms=rooms, parts=parts)
    for _ in range(2):
        jobs = {name: stepping.add(request) for name, request in requests.items()}
        stepping.finish()
        assert {name: stepping.answers[job].tokens for name, job in jobs.items()} == alone


@pytest.mark.parametrize("operators", [True, False], ids=["ours", "onnxruntime"])
def test_neighbours_change_no_bit(rounded: Bundle, questions: dict[str, Asked], *, operators: bool) -> None:
    """At INT4 and INT8: tokens and log probabilities beside requests with the adapter and without are those alone."""
    graphs = load(BatchConfig(rounded, threads=1, operators=operators))[0]
    exactly = graphs.cache_dtype != np.float32
    requests = {name: _request(question, name, logprobs=3) for name, question in questions.items()}
    rest = Stepping(rounded, graphs, slots=1)
    at_rest = {name: rest.answer(request).drawn for name, request in requests.items()}
    stepping = Stepping(rounded, graphs, slots=4, caches=2, rooms=(11, 40), parts=(1, 3))
    jobs = {name: stepping.add(request) for name, request in requests.items()}
    stepping.finish()
    for name, job in jobs.items():
        told = stepping.answers[job].drawn
        assert [one.token_id for one in told] == [one.token_id for one in at_rest[name]]
        assert _logprobs(told) == pytest.approx(_logprobs(at_rest[name]), abs=1e-3)
        assert told == at_rest[name] or not exactly


def _logprobs(drawn: list[TokenDrawn]) -> list[float]:
    return [one.logprob or 0.0 for one in drawn]


def test_a_row_without_the_adapter_has_the_bits_of_a_graph_without(source: Path, rounded: Bundle) -> None:
    """A step of text and images together: the rows of text are those of the same checkpoint without its adapter."""
    plain_source = source.parent / "plain"
    make_phi4(plain_source, "native", targets=())
    plain = exporter.export(plain_source, source.parent / "plain-int4", calibrate=False, progress=False)
    both = {name: load(BatchConfig(bundle, threads=1))[0] for name, bundle in (("with", rounded), ("without", plain))}
    assert both["without"].shape == dataclasses.replace(both["with"].shape, has_adapter=False)
    logits = {}
    for name, graphs in both.items():
        stepping = Stepping(rounded, graphs, slots=3)
        text = [_request(asked(rounded, length, 0), str(length), tokens=6, logprobs=5) for length in (9, 33)]
        jobs = [stepping.add(request) for request in text]
        if name == "with":
            stepping.add(_request(asked(rounded, 25, 12), "image", tokens=6))
        stepping.finish()
        logits[name] = [stepping.answers[job].drawn for job in jobs]
    assert logits["with"] == logits["without"]


def test_the_prefix_cache_keeps_adapter_and_rotations_apart(exact: Bundle, runner: Runner) -> None:
    """The same tokens are found again with the same keys and values alone."""
    stepping = Stepping(exact, runner, slots=1, caches=8)

    def cached(request: EngineRequest) -> int:
        told = stepping.answer(request)
        assert told.prefilled is not None
        return told.prefilled.cached_tokens

    text = _request(asked(exact, 50, 0), "text", tokens=2)
    image = _request(asked(exact, 50, 20), "image", tokens=2)
    around = np.concatenate([text.token_ids[:3], image.token_ids[3:23], text.token_ids[23:]])
    behind = dataclasses.replace(image, token_ids=around)  # the same text before its image and after
    assert cached(text) == 0
    assert cached(text) == 49
    assert cached(behind) == 0
    assert cached(followed(behind, [7, 8])) == 50
    assert cached(followed(text, [7, 8])) == 50
    long = followed(text, list(range(10, 10 + ORIGINAL)))
    assert cached(long) == 0
    assert cached(followed(long, [1])) == len(long.token_ids)


def test_what_outgrew_the_short_factors_is_found_by_the_next_turn(
    exact: Bundle, runner: Runner, requests: dict[str, EngineRequest], alone: dict[str, list[int]]
) -> None:
    """The prompt that was prefilled again is kept with the answer's first tokens; the next turn goes on from there."""
    name = "text that outgrows the short factors"
    stepping = Stepping(exact, runner, slots=1, caches=2)
    stepping.answer(requests[name])
    turn = followed(requests[name], [*alone[name], 5, 6])
    told = stepping.answer(turn)
    assert told.prefilled is not None
    assert told.prefilled.cached_tokens == ORIGINAL + 1
    assert told.tokens == Stepping(exact, runner, slots=1).answer(turn).tokens


@pytest.mark.parametrize("length", [ORIGINAL - 6, ORIGINAL - 1, ORIGINAL])
def test_forced_tokens_outgrow_the_short_factors(exact: Bundle, runner: Runner, length: int) -> None:
    """Tokens without an alternative, computed several in a run: the answer is that of one token at a time."""
    told = []
    for together in (False, True):
        script = Script(exact.text.vocab_size, together=together, longest=12)
        request = dataclasses.replace(_request(asked(exact, length, 0), "forced", tokens=40), constraint=script)
        told.append(Stepping(exact, runner, slots=1).answer(request).tokens)
    assert told[0] == told[1]
    assert len(told[0]) == 40


@pytest.mark.parametrize("parking", [0, 10_000])
def test_parked_requests_outgrow_the_short_factors_as_others_do(
    exact: Bundle, runner: Runner, requests: dict[str, EngineRequest], alone: dict[str, list[int]], parking: int
) -> None:
    """In memory for two or three, whether keys and values are kept or computed again."""
    stepping = Stepping(exact, runner, slots=6, budget=256, growth=1, parking=parking, rooms=(40,))
    jobs = {name: stepping.add(request) for name, request in requests.items()}
    stepping.finish()
    assert {name: stepping.answers[job].tokens for name, job in jobs.items()} == alone


def test_without_the_second_prefill_the_answer_is_another(
    exact: Bundle, runner: Runner, requests: dict[str, EngineRequest], alone: dict[str, list[int]]
) -> None:
    """Negative control: an engine that keeps the short factors, as if they reached further, says something else."""
    name = "text that outgrows the short factors"

    stepping = Stepping(exact, runner, slots=1)
    stepping._shape = stepping.stepper._shape = dataclasses.replace(runner.shape, longest_short=None)
    told = stepping.answer(requests[name]).tokens
    reached = ORIGINAL - len(requests[name].token_ids) + 1
    assert told[:reached] == alone[name][:reached]
    assert told != alone[name]


def test_the_adapter_changes_the_rows_of_its_requests_alone(runner: Runner, exact: Bundle) -> None:
    """The same tokens with the adapter have other logits; a decode step has both kinds in one run."""
    ids = np.arange(20, 40, dtype=np.int32)
    nothing = np.empty((0, exact.feature_width), np.float32)
    Stepping(exact, runner, slots=2)
    pieces = [Piece(0, 0, ids, nothing, np.arange(20)[None], adapted=adapted) for adapted in (False, True)]
    plain, adapted = (runner.run("fp32", piece=piece) for piece in pieces)
    assert np.abs(plain - adapted).max() > 0.1
