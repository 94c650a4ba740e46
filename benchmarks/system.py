"""The speed of the whole system for a client: through the gateway, with pictures."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
from PIL import Image as Pillow

from benchmarks.report import Curve, Table
from benchmarks.spread import Spread
from triptych.client import AsyncClient
from triptych.events import Delta, Finished, Timings, Usage
from triptych.media import Image
from triptych.messages import Message, assistant, user

_QUESTION = "Describe the picture in detail."
_SECOND = "What is in its middle?"


@dataclass(frozen=True)
class SystemPlan:
    """The workload of the system.

    Attributes:
        sizes: Edges of the square pictures whose time to the first token is measured, in pixels.
        streams: Numbers of concurrent conversations, each about its own picture, one after another.
        stream_size: Edge of their pictures.
        new_tokens: Most tokens of their answers.
        repeats: Number of measurements of each.
        seed: Seed of the pictures.
    """

    sizes: tuple[int, ...] = (224, 448, 768, 1024)
    streams: tuple[int, ...] = (1, 2, 4, 8)
    stream_size: int = 224
    new_tokens: int = 64
    repeats: int = 3
    seed: int = 0


@dataclass(frozen=True)
class FirstToken:
    """Parts of the TTFT, by the client's clock and by the servers' timings. Medians, in seconds."""

    seconds: Spread
    vision_seconds: float
    queue_seconds: float
    prefill_seconds: float
    prompt_tokens: int
    cached_tokens: int


@dataclass(frozen=True)
class BySize:
    """The first question about a new picture."""

    edge: int
    first_token: FirstToken


@dataclass(frozen=True)
class Conversations:
    """Concurrent conversations. Tokens per second are medians of the repeats; other times are of all repeats."""

    streams: int
    tokens_per_second: float
    first_token_seconds: Spread
    step_seconds: float


@dataclass(frozen=True)
class SecondQuestion:
    """A second question about the same picture, compared with the first. `ratio` is of the medians, second to first."""

    edge: int
    first: FirstToken
    second: FirstToken
    ratio: float


@dataclass(frozen=True)
class SystemResults:
    """All results."""

    by_size: list[BySize]
    conversations: list[Conversations]
    second_question: SecondQuestion


@dataclass(frozen=True)
class _Answer:
    """One answer with its times."""

    asked: float
    first: float
    last: float
    text: str
    tokens: int
    usage: Usage
    timings: Timings


class Pictures:
    """Pictures of noise, all different.

    Args:
        seed: The same seed gives the same pictures.
    """

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)

    def make(self, edge: int) -> Image:
        """A square PNG with cells of 16 pixels, so that decoding takes as long as for drawings and photographs."""
        cells = self._random.integers(0, 256, (max(1, edge // 16), max(1, edge // 16), 3), np.uint8)
        out = io.BytesIO()
        Pillow.fromarray(cells).resize((edge, edge), Pillow.Resampling.BICUBIC).save(out, "PNG")
        return Image(out.getvalue())


async def run(client: AsyncClient, plan: SystemPlan) -> SystemResults:
    """Measure an idle system.

    Raises:
        ServiceError: A request fails.
    """
    pictures = Pictures(plan.seed)
    await _ask(client, [user(pictures.make(min(plan.sizes)), _QUESTION)], 2)  # warm-up
    return SystemResults(
        by_size=[BySize(edge, await _by_size(client, pictures, edge, plan)) for edge in plan.sizes],
        conversations=[await _conversations(client, pictures, count, plan) for count in plan.streams],
        second_question=await _second_question(client, pictures, max(plan.sizes), plan),
    )


async def _ask(client: AsyncClient, messages: Sequence[Message], new_tokens: int) -> _Answer:
    text, tokens = "", 0
    asked = time.perf_counter()
    first = last = 0.0
    async for event in client.chat(messages, max_tokens=new_tokens):
        match event:
            case Delta():
                text += event.text
                if event.token_ids:
                    last = time.perf_counter()
                    first = first or last
                    tokens += len(event.token_ids)
            case Finished():
                return _Answer(asked, first, last, text, tokens, event.usage, event.timings)
    raise ValueError("the events ended before the answer did")


def _first_token(answers: Sequence[_Answer]) -> FirstToken:
    return FirstToken(
        Spread.of([answer.first - answer.asked for answer in answers]),
        median(answer.timings.vision_seconds for answer in answers),
        median(answer.timings.queue_seconds for answer in answers),
        median(answer.timings.prefill_seconds for answer in answers),
        max(answer.usage.prompt_tokens for answer in answers),
        max(answer.usage.cached_tokens for answer in answers),
    )


async def _by_size(client: AsyncClient, pictures: Pictures, edge: int, plan: SystemPlan) -> FirstToken:
    return _first_token([await _ask(client, [user(pictures.make(edge), _QUESTION)], 1) for _ in range(plan.repeats)])


async def _conversations(client: AsyncClient, pictures: Pictures, count: int, plan: SystemPlan) -> Conversations:
    rates, every = [], []
    for _ in range(plan.repeats):
        questions = [[user(pictures.make(plan.stream_size), _QUESTION)] for _ in range(count)]
        answers = await asyncio.gather(*(_ask(client, question, plan.new_tokens) for question in questions))
        seconds = max(answer.last for answer in answers) - min(answer.asked for answer in answers)
        rates.append(sum(answer.tokens for answer in answers) / seconds)
        every += answers
    steps = [(answer.last - answer.first) / (answer.tokens - 1) for answer in every if answer.tokens > 1]
    return Conversations(
        count,
        median(rates),
        Spread.of([answer.first - answer.asked for answer in every]),
        median(steps) if steps else 0.0,
    )


async def _second_question(client: AsyncClient, pictures: Pictures, edge: int, plan: SystemPlan) -> SecondQuestion:
    firsts, seconds = [], []
    for _ in range(plan.repeats):
        question = user(pictures.make(edge), _QUESTION)
        firsts.append(await _ask(client, [question], plan.new_tokens))
        seconds.append(await _ask(client, [question, assistant(firsts[-1].text), user(_SECOND)], 1))
    first, second = _first_token(firsts), _first_token(seconds)
    return SecondQuestion(edge, first, second, second.seconds.median / first.seconds.median)


def tables(results: SystemResults) -> list[Table]:
    """The results as tables, in milliseconds and tokens per second."""
    head = ["TTFT ms", "vision ms", "queue ms", "prefill ms", "prompt tokens", "cached"]
    again = results.second_question
    return [
        Table(
            "First question about a picture",
            ["edge", *head],
            [[size.edge, *_cells(size.first_token)] for size in results.by_size],
        ),
        Table(
            "Concurrent conversations, each about its own picture",
            ["streams", "tok/s", "TTFT ms", "TTFT p99 ms", "step ms"],
            [
                [
                    c.streams,
                    c.tokens_per_second,
                    1000 * c.first_token_seconds.median,
                    1000 * c.first_token_seconds.p99,
                    1000 * c.step_seconds,
                ]
                for c in results.conversations
            ],
        ),
        Table(
            f"Two questions about one picture of {again.edge} x {again.edge}: the second takes "
            f"{100 * again.ratio:.1f}% of the first",
            ["question", *head],
            [["first", *_cells(again.first)], ["second", *_cells(again.second)]],
        ),
    ]


def _cells(first: FirstToken) -> list[object]:
    times = (first.seconds.median, first.vision_seconds, first.queue_seconds, first.prefill_seconds)
    return [*(1000 * seconds for seconds in times), first.prompt_tokens, first.cached_tokens]


def curves(results: SystemResults) -> list[Curve]:
    """The results as curves."""
    return [
        Curve("Throughput", "streams", "tokens/s", [(c.streams, c.tokens_per_second) for c in results.conversations]),
        Curve(
            "Time to the first token",
            "edge of the picture, pixels",
            "seconds",
            [(size.edge, size.first_token.seconds.median) for size in results.by_size],
        ),
    ]
