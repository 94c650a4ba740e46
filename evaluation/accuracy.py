"""How many questions of a file a running system answers rightly."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from evaluation.answers import judge, prompt_of
from evaluation.errors import EvaluationError
from evaluation.metrics import Interval, interval
from evaluation.questions import AnyQuestion, ChoiceQuestion, QuestionFile
from serving.bundle import Bundle
from serving.errors import Code, ServiceError
from serving.tasks import gather_or_cancel
from triptych import launcher
from triptych.client import AsyncClient
from triptych.media import Image
from triptych.messages import user
from triptych.options import ChatOptions
from triptych.tls import Tls

_TRIES = 5  # also where the client itself would give up: an evaluation takes hours
_OF_THE_QUESTION = {
    *(Code.INVALID_ARGUMENT, Code.RESOURCE_EXHAUSTED, Code.FAILED_PRECONDITION),
    *(Code.DEADLINE_EXCEEDED, Code.UNIMPLEMENTED),
}
"""Codes of what fails for one question and not for others."""

Advance = Callable[[int], None]


@dataclass(frozen=True)
class Asking:
    """How questions are asked, beside being answered greedily.

    Attributes:
        at_once: requests that are answered at the same time.
        max_tokens: most tokens of an answer.
        max_pixels: greatest area of a resized picture; None leaves it to the vision service.
    """

    at_once: int
    max_tokens: int
    max_pixels: int | None = None


@dataclass(frozen=True)
class Item:
    """A question's answer.

    Attributes:
        id: the question's.
        category: the question's.
        metric: `choice`, `exact`, `anls` or `relaxed`.
        score: from 0 to 1.
        answer: what the model wrote.
        read: what of it was scored; None where no letter was found, and where the request failed.
        expected: the right letter, or the right answers.
        finish_reason: why the answer ended; "" where the request failed.
        error: why the request failed; None where it did not.
    """

    id: str
    category: str
    metric: str
    score: float
    answer: str
    read: str | None
    expected: str | Sequence[str]
    finish_reason: str
    error: str | None = None


@dataclass(frozen=True)
class Score:
    """The score of some questions.

    Attributes:
        questions: how many.
        accuracy: mean score, from 0 to 1.
        interval: where it lies with 95% confidence.
    """

    questions: int
    accuracy: float
    interval: Interval


@dataclass(frozen=True)
class Accuracy:
    """What a system answered.

    Attributes:
        encoder: type that it was told to encode in; None: its own choice.
        total: of all questions.
        categories: of each category, where there are any.
        without_letter: answers to choices that name none.
        cut: answers that reached the most tokens.
        failed: questions that were refused; they count as wrong.
        items: the answers, in the file's order.
    """

    encoder: str | None
    total: Score
    categories: Mapping[str, Score]
    without_letter: int
    cut: int
    failed: int
    items: Sequence[Item]


def accuracy_of_bundle(
    bundle: Bundle, file: QuestionFile, advance: Advance, *, encoder: str | None, asking: Asking
) -> Accuracy:
    """Start the services on free ports, with the settings of this process's environment, and ask everything.

    Args:
        bundle: what they serve.
        file: the questions.
        advance: called for each answer.
        encoder: type to encode in; None leaves it to the vision service.
        asking: how the questions are asked.

    Raises:
        LaunchError: the services cannot start, or a signal came.
        ServiceError: they fail for other reasons than a question.
    """
    environment = {} if encoder is None else {"VISION_DTYPE": encoder}
    plan = launcher.Plan(bundle.root, grpc_port=0, http_port=0, environment=environment)

    async def work(addresses: launcher.Addresses) -> Sequence[Item]:
        async with AsyncClient(addresses.grpc, retries=0) as client:
            return await _ask_all(client, file, advance, asking)

    return summary(asyncio.run(launcher.run_while(plan, work)), encoder)


def accuracy_at(
    address: str, bundle: Bundle, file: QuestionFile, advance: Advance, *, asking: Asking, tls: Tls | None = None
) -> Accuracy:
    """Ask a running gateway everything. Arguments as for `accuracy_of_bundle`, and `tls` as for `Client`.

    Raises:
        EvaluationError: it serves another model than the bundle's.
        ServiceError: it cannot be reached, or fails for other reasons than a question.
    """

    async def work() -> Sequence[Item]:
        async with AsyncClient(address, retries=0, tls=tls) as client:
            served = await client.models()
            if bundle.model.id not in served:
                raise EvaluationError(f"{address} serves {', '.join(served)}, and {bundle.root} is {bundle.model.id}")
            return await _ask_all(client, file, advance, asking)

    return summary(asyncio.run(work()), None)


def summary(items: Sequence[Item], encoder: str | None) -> Accuracy:
    """The scores of answers, at least one."""
    names = list(dict.fromkeys(item.category for item in items))
    categories = {name: _score([item for item in items if item.category == name]) for name in names}
    return Accuracy(
        encoder,
        _score(items),
        {} if names == [""] else categories,
        without_letter=sum(item.metric == "choice" and item.read is None and item.error is None for item in items),
        cut=sum(item.finish_reason == "length" for item in items),
        failed=sum(item.error is not None for item in items),
        items=items,
    )


def _score(items: Sequence[Item]) -> Score:
    mean = sum(item.score for item in items) / len(items)
    return Score(len(items), mean, interval(mean, len(items)))


async def _ask_all(client: AsyncClient, file: QuestionFile, advance: Advance, asking: Asking) -> Sequence[Item]:
    """The answers, in order; so many are asked for at the same time."""
    waiting = iter(enumerate(file.questions))
    options: ChatOptions = {"temperature": 0, "max_tokens": asking.max_tokens}
    if asking.max_pixels is not None:
        options["max_pixels"] = asking.max_pixels
    items: dict[int, Item] = {}

    async def worker(waiting: Iterator[tuple[int, AnyQuestion]]) -> None:
        for index, question in waiting:  # all of them take from the same iterator
            items[index] = await _ask(client, file, question, options)
            advance(1)

    await gather_or_cancel(worker(waiting) for _ in range(asking.at_once))
    return [items[index] for index in range(len(items))]


async def _ask(client: AsyncClient, file: QuestionFile, question: AnyQuestion, options: ChatOptions) -> Item:
    expected: str | Sequence[str]
    if isinstance(question, ChoiceQuestion):
        metric, expected = "choice", question.answer
    else:
        metric, expected = question.metric, question.answers
    pictures = [Image(data) for data in file.pictures(question)]
    message = user(*pictures, prompt_of(question))
    for tries_left in reversed(range(_TRIES)):
        try:
            answer = await client.answer([message], **options)
        except ServiceError as error:
            if error.retry_after is not None and tries_left:
                await asyncio.sleep(error.retry_after)
                continue
            if error.code not in _OF_THE_QUESTION:
                raise
            return Item(question.id, question.category, metric, 0.0, "", None, expected, "", error.message)
        read, score = judge(question, answer.text)
        return Item(question.id, question.category, metric, score, answer.text, read, expected, answer.finish_reason)
    raise AssertionError  # the last try returns or raises
