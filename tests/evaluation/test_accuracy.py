"""Asking a file's questions, at a gateway that plays a script."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_status import rpc_status

from evaluation.accuracy import Accuracy, Asking, accuracy_at
from evaluation.errors import EvaluationError
from evaluation.questions import QuestionFile
from serving.bundle import Bundle
from serving.errors import Reason, ServiceError, failure
from serving.status import to_proto
from tests.evaluation import drawn
from tests.triptych.scripted import Context, Scripted, answered, playing, wait
from triptych.bundles import demo_bundle
from vlm.v1 import chat_pb2, gateway_pb2

MODEL = "triptych-demo"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> QuestionFile:
    """Six questions, three of each category."""
    folder = tmp_path_factory.mktemp("questions")
    return QuestionFile(drawn.write(folder / "q.jsonl", [*drawn.colours(folder, 3), *drawn.signs(folder, 3)]))


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    """The demo's."""
    return Bundle.open(demo_bundle())


def _ask(gateway: Scripted, bundle: Bundle, file: QuestionFile, at_once: int = 2) -> Accuracy:
    gateway.models = (MODEL,)
    return accuracy_at(gateway.address, bundle, file, lambda _: None, asking=Asking(at_once, 7, 50_000))


def _text(request: gateway_pb2.ChatRequest) -> str:
    return request.messages[0].parts[-1].text


def _abort(context: Context, error: ServiceError) -> None:
    context.abort_with_status(rpc_status.to_status(to_proto(error)))


def test_answers_are_scored_in_the_files_order(bundle: Bundle, file: QuestionFile) -> None:
    """Greedy requests with the pictures and the limits; each category has a score, and all together."""
    right = {one.prompt: getattr(one, "answer", None) for one in file.questions}

    def play(request: gateway_pb2.ChatRequest, context: Context) -> Iterator[chat_pb2.ChatEvent]:
        yield from answered(right[_text(request)] or "nothing of the kind")

    advanced: list[int] = []
    with playing(play) as gateway:
        gateway.models = (MODEL,)
        found = accuracy_at(gateway.address, bundle, file, advanced.append, asking=Asking(2, 7, 50_000))
    assert [item.id for item in found.items] == [question.id for question in file.questions]
    assert (found.total.questions, found.total.accuracy) == (6, pytest.approx(0.5))
    assert {name: score.accuracy for name, score in found.categories.items()} == {"colour": 1.0, "sign": 0.0}
    assert (found.without_letter, found.cut, found.failed) == (0, 0, 0)
    assert sum(advanced) == 6
    for request in gateway.chats:
        assert (request.generation.temperature, request.generation.max_tokens) == (0, 7)
        assert request.generation.HasField("temperature")
        assert request.media.max_pixels == 50_000
        assert request.messages[0].parts[0].image.data.startswith(b"\x89PNG")


def test_so_many_are_asked_at_once_and_no_more(bundle: Bundle, file: QuestionFile) -> None:
    """The first requests are answered when as many are there; there are never more."""
    lock, full, running, most = threading.Lock(), threading.Event(), 0, 0

    def play(request: gateway_pb2.ChatRequest, context: Context) -> Iterator[chat_pb2.ChatEvent]:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
            if running == 3:
                full.set()
        wait(full)
        yield from answered()
        with lock:
            running -= 1

    with playing(play) as gateway:
        found = _ask(gateway, bundle, file, at_once=3)
    assert most == 3
    assert found.without_letter == 3


def test_a_refused_question_counts_as_wrong_and_a_full_server_is_asked_again(
    bundle: Bundle, file: QuestionFile
) -> None:
    """What is wrong with one question leaves the others alone; what comes with a delay is tried again."""
    tries: list[str] = []
    asked = [question.prompt or "" for question in file.questions]

    def play(request: gateway_pb2.ChatRequest, context: Context) -> Iterator[chat_pb2.ChatEvent]:
        tries.append(_text(request))
        if _text(request) == asked[0]:
            _abort(context, failure(Reason.PROMPT_TOO_LONG, "the prompt is too long"))
        if _text(request) == asked[1] and tries.count(asked[1]) < 3:
            _abort(context, failure(Reason.QUEUE_FULL, "it is full", retry_after=0.001))
        yield from answered("A")

    with playing(play) as gateway:
        found = _ask(gateway, bundle, file)
    assert [item.error for item in found.items] == ["the prompt is too long", *[None] * 5]
    assert (found.failed, found.items[0].score, found.items[0].finish_reason) == (1, 0.0, "")
    assert found.items[1].read == "A"
    assert (tries.count(asked[0]), tries.count(asked[1]), len(tries)) == (1, 3, 8)


def test_a_broken_server_ends_it(bundle: Bundle, file: QuestionFile) -> None:
    """A failure that the next question would meet, too, is raised; the others are given up."""

    def play(request: gateway_pb2.ChatRequest, context: Context) -> Iterator[chat_pb2.ChatEvent]:
        context.abort(grpc.StatusCode.INTERNAL, "broken")
        yield from ()

    with playing(play) as gateway, pytest.raises(ServiceError, match="broken"):
        _ask(gateway, bundle, file, at_once=1)
    assert len(gateway.chats) == 1


def test_another_model_is_refused(bundle: Bundle, file: QuestionFile, tmp_path: Path) -> None:
    """What runs at the address must be what is evaluated."""
    with playing(lambda request, context: answered()) as gateway, pytest.raises(EvaluationError, match="serves m, and"):
        accuracy_at(gateway.address, bundle, file, lambda _: None, asking=Asking(1, 7))
    assert gateway.chats == []
