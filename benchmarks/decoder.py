"""The speed of an engine: prefill, decode at several widths, mixed arrivals, and the stall of decode by a prefill."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from benchmarks.errors import BenchError
from benchmarks.report import Curve, Table
from benchmarks.spread import Spread
from benchmarks.stream import Prompts, Stream, all_of
from decoder_service.engine import Engine
from serving.bundle import Bundle
from serving.tasks import cancel_and_wait, gather_or_cancel

_SETTLED = 8
"""Tokens after which a stream is in its steady state."""


@dataclass(frozen=True)
class DecoderPlan:
    """The workload of the engine.

    Attributes:
        prompts: Lengths of the prompts whose prefill is measured, in tokens.
        streams: Numbers of concurrent requests, one after another.
        prompt_tokens: Length of a stream's prompt.
        new_tokens: Length of a stream's answer.
        arrivals: Requests of the mixed workload.
        arrival_seconds: Mean time from one arrival to the next.
        stall_streams: Streams that decode while a long prompt is prefilled, at most the engine's slots less one.
        stall_prompt: Length of that prompt.
        repeats: Number of measurements of each.
        seed: Seed of the prompts and arrivals.
    """

    prompts: tuple[int, ...] = (128, 512, 1024)
    streams: tuple[int, ...] = (1, 2, 4, 8, 16)
    prompt_tokens: int = 128
    new_tokens: int = 128
    arrivals: int = 24
    arrival_seconds: float = 1.0
    stall_streams: int = 4
    stall_prompt: int = 1024
    repeats: int = 3
    seed: int = 0

    @property
    def longest(self) -> int:
        """Most tokens of a prompt and its answer."""
        return max(
            max(self.prompts) + 1,
            self.prompt_tokens + self.new_tokens,
            2 * self.prompt_tokens + self.new_tokens,
            self.stall_prompt + 1,
        )


@dataclass(frozen=True)
class Prefill:
    """Prefill of one prompt. Seconds are measured by the engine: to the logits of the last position."""

    prompt_tokens: int
    seconds: Spread
    tokens_per_second: float


@dataclass(frozen=True)
class Streams:
    """Requests of one shape, started at once.

    Attributes:
        streams: Number of requests.
        whole_tokens_per_second: New tokens over the time from the start to the last token, median.
        decode_tokens_per_second: The same while all of them decoded; None if they never did.
        first_token_seconds: TTFT of every stream.
        step_seconds: Time between tokens of every stream.
    """

    streams: int
    whole_tokens_per_second: float
    decode_tokens_per_second: float | None
    first_token_seconds: Spread
    step_seconds: Spread


@dataclass(frozen=True)
class Mixed:
    """Requests of many lengths that arrive at random times."""

    requests: int
    new_tokens: int
    tokens_per_second: float
    first_token_seconds: Spread
    step_seconds: Spread


@dataclass(frozen=True)
class Stall:
    """The slowdown of decoding streams during the prefill of a long prompt.

    Attributes:
        streams: Number of streams.
        prompt_tokens: Length of the prompt.
        step_seconds: Median time between tokens before, of all streams.
        longest_seconds: Longest time between tokens of any stream during the prefill, median of the repeats.
        ratio: The longest time, in steps.
        first_token_seconds: TTFT of the long prompt, median of the repeats.
    """

    streams: int
    prompt_tokens: int
    step_seconds: float
    longest_seconds: float
    ratio: float
    first_token_seconds: float


@dataclass(frozen=True)
class DecoderResults:
    """All results."""

    prefill: list[Prefill]
    streams: list[Streams]
    mixed: Mixed
    stall: Stall


async def run(engine: Engine, bundle: Bundle, plan: DecoderPlan, *, context_length: int) -> DecoderResults:
    """Measure a started, idle engine.

    Args:
        engine: The engine.
        bundle: The bundle with the tokens of the prompts.
        plan: The workload.
        context_length: Most tokens of a prompt and its answer.

    Raises:
        BenchError: The plan does not fit the context.
    """
    if plan.longest > context_length:
        raise BenchError(f"the plan needs a context of {plan.longest} tokens, and the model has {context_length}")
    prompts = Prompts(bundle, plan.seed)
    await all_of([Stream(engine, prompts.request(plan.prompt_tokens, _SETTLED))])  # warm-up
    return DecoderResults(
        prefill=[await _prefill(engine, prompts, tokens, plan) for tokens in plan.prompts],
        streams=[await _streams(engine, prompts, count, plan) for count in plan.streams],
        mixed=await _mixed(engine, prompts, plan),
        stall=await _stall(engine, prompts, plan),
    )


async def _prefill(engine: Engine, prompts: Prompts, tokens: int, plan: DecoderPlan) -> Prefill:
    seconds = []
    for _ in range(plan.repeats):
        stream = Stream(engine, prompts.request(tokens, 1))
        await stream.run()
        assert stream.prefilled is not None  # noqa: S101  # it has sampled a token
        seconds.append(stream.prefilled.prefill_seconds)
    spread = Spread.of(seconds)
    return Prefill(tokens, spread, tokens / spread.median)


async def _streams(engine: Engine, prompts: Prompts, count: int, plan: DecoderPlan) -> Streams:
    whole, decode, every = [], [], []
    for _ in range(plan.repeats):
        streams = [Stream(engine, prompts.request(plan.prompt_tokens, plan.new_tokens)) for _ in range(count)]
        await all_of(streams)
        every += streams
        seconds = max(stream.times[-1] for stream in streams) - min(stream.asked for stream in streams)
        whole.append(count * plan.new_tokens / seconds)
        if (rate := while_all_decode([stream.times for stream in streams])) is not None:
            decode.append(rate)
    return Streams(
        count,
        median(whole),
        median(decode) if decode else None,
        Spread.of([stream.first_token_seconds for stream in every]),
        Spread.of([gap for stream in every for gap in stream.gaps]),
    )


def while_all_decode(streams: Sequence[Sequence[float]]) -> float | None:
    """Tokens per second from the first token of the last stream to start, to the end of the first stream to end.

    Args:
        streams: Times of the tokens of each.

    Returns:
        None if there was no such time.
    """
    begin, end = max(times[0] for times in streams), min(times[-1] for times in streams)
    if end <= begin:
        return None
    return sum(begin < at <= end for times in streams for at in times) / (end - begin)


async def _mixed(engine: Engine, prompts: Prompts, plan: DecoderPlan) -> Mixed:
    random = np.random.default_rng(plan.seed)
    lengths = random.choice(
        [max(1, plan.prompt_tokens // 4), plan.prompt_tokens, 2 * plan.prompt_tokens], plan.arrivals
    )
    answers = random.integers(max(2, plan.new_tokens // 4), plan.new_tokens + 1, plan.arrivals)
    arrivals = np.cumsum(random.exponential(plan.arrival_seconds, plan.arrivals))
    streams = [Stream(engine, prompts.request(*map(int, shape))) for shape in zip(lengths, answers, strict=True)]

    async def arrive(stream: Stream, after: float) -> None:
        await asyncio.sleep(after)
        await stream.run()

    await gather_or_cancel(arrive(*each) for each in zip(streams, arrivals, strict=True))
    tokens = sum(len(stream.times) for stream in streams)
    seconds = max(stream.times[-1] for stream in streams) - min(stream.asked for stream in streams)
    return Mixed(
        len(streams),
        tokens,
        tokens / seconds,
        Spread.of([stream.first_token_seconds for stream in streams]),
        Spread.of([gap for stream in streams for gap in stream.gaps]),
    )


async def _stall(engine: Engine, prompts: Prompts, plan: DecoderPlan) -> Stall:
    # One slot is for the long prompt; in an engine with a single slot, only the long prompt waits.
    count = max(1, min(plan.stall_streams, engine.info.slots - 1))
    steps, longest, first = [], [], []
    for _ in range(plan.repeats):
        streams = [
            Stream(engine, prompts.request(plan.prompt_tokens, plan.prompt_tokens + plan.new_tokens))
            for _ in range(count)
        ]
        running = [asyncio.create_task(stream.run()) for stream in streams]
        try:
            for stream in streams:
                await stream.reaches(_SETTLED)
            late = Stream(engine, prompts.request(plan.stall_prompt, 1))
            await late.run()
            for stream in streams:  # they may still be waiting
                await stream.reaches(len(stream.times) + 1)
        finally:
            await cancel_and_wait(*running)
        before, wait = waits([stream.times for stream in streams], late.asked, late.times[-1])
        steps += before
        longest.append(wait)
        first.append(late.first_token_seconds)
    step = median(steps)
    return Stall(count, plan.stall_prompt, step, median(longest), median(longest) / step, median(first))


def waits(streams: Sequence[Sequence[float]], begin: float, end: float) -> tuple[list[float], float]:
    """Times between tokens of streams before a period, and the longest within it.

    Args:
        streams: Times of the tokens of each.
        begin: Start of the period.
        end: End of the period.

    Returns:
        The times between tokens that started when all streams decoded and ended by `begin`; and the longest of those
        that overlap the period, 0 if there is none.
    """
    settled = max(times[0] for times in streams)
    pairs = [pair for times in streams for pair in itertools.pairwise(times)]
    during = (after - before for before, after in pairs if before < end and after > begin)
    quiet = [after - before for before, after in pairs if settled <= before and after <= begin]
    return quiet, max(during, default=0.0)


def tables(results: DecoderResults) -> list[Table]:
    """The results as tables, in tokens per second and milliseconds."""
    mixed, stall = results.mixed, results.stall
    return [
        Table(
            "Prefill",
            ["prompt", "tok/s", "ms"],
            [[p.prompt_tokens, p.tokens_per_second, 1000 * p.seconds.median] for p in results.prefill],
        ),
        Table(
            "Decode",
            ["streams", "tok/s while all decode", "tok/s whole run", "TTFT ms", "step ms", "step p99 ms"],
            [
                [
                    s.streams,
                    s.decode_tokens_per_second,
                    s.whole_tokens_per_second,
                    1000 * s.first_token_seconds.median,
                    1000 * s.step_seconds.median,
                    1000 * s.step_seconds.p99,
                ]
                for s in results.streams
            ],
        ),
        Table(
            f"{mixed.requests} requests at random times, {mixed.new_tokens} new tokens: "
            f"{mixed.tokens_per_second:.1f} tok/s",
            ["ms", "median", "p90", "p99", "greatest"],
            [
                [name, *(1000 * value for value in (spread.median, spread.p90, spread.p99, spread.greatest))]
                for name, spread in (("TTFT", mixed.first_token_seconds), ("step", mixed.step_seconds))
            ],
        ),
        Table(
            f"{stall.streams} streams while a prompt of {stall.prompt_tokens} tokens is prefilled",
            ["step ms", "longest wait ms", "in steps", "TTFT of the prompt ms"],
            [[1000 * stall.step_seconds, 1000 * stall.longest_seconds, stall.ratio, 1000 * stall.first_token_seconds]],
        ),
    ]


def curves(results: DecoderResults) -> list[Curve]:
    """The results as curves."""
    return [
        Curve(
            "Throughput",
            "streams",
            "tokens/s, whole run",
            [(s.streams, s.whole_tokens_per_second) for s in results.streams],
        ),
        Curve(
            "Prefill", "prompt tokens", "tokens/s", [(p.prompt_tokens, p.tokens_per_second) for p in results.prefill]
        ),
    ]
