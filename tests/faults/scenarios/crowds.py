"""More clients than there is room for, and clients that leave."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence

from tests.faults.asking import Asker
from tests.faults.bench import Bench, Row
from tests.faults.doors import Door
from tests.faults.ledger import Kind, Outcome
from tests.faults.questions import Question
from tests.faults.services import Deployment, Plan

BUSY = ("QUEUE_FULL", "TOO_MANY_CALLS", "ENCODER_BUSY", "FEATURE_MEMORY_FULL")
"""What a client may be told where there is no room: each has a delay."""

_AT_ONCE = 64


async def cancellations(bench: Bench) -> Row:
    """Thousands of requests; two thirds of the clients leave at a random moment."""
    deployment = await bench.shared(gateways=2)
    asker, order = Asker("cancellations", bench.answers), random.Random(1)
    doors = [door for _ in range(4) for door in deployment.gateways.doors()]
    left = iter(range(bench.lengths.cancellations))
    questions = list(bench.answers)

    async def client(door: Door) -> None:
        for _ in left:
            leave = order.expovariate(4) if order.random() < 2 / 3 else None
            await asker.ask(door, order.choice(questions), leave_after=leave)

    began = time.monotonic()
    try:
        await asyncio.gather(*(client(doors[number % len(doors)]) for number in range(_AT_ONCE)))
    finally:
        await _closed(doors)
    row = Row("cancellations", figures={"requests/s": round(bench.lengths.cancellations / (time.monotonic() - began))})
    return await bench.judged(row, asker.ledger, deployment, allowed=BUSY)


async def streams(bench: Bench, *, raised: bool) -> Row:
    """Two thousand streams at once: at the default limits most are refused with a delay; with limits raised, all run.

    Args:
        bench: The bench.
        raised: Whether the limits are raised.
    """
    name = "streams-raised-limits" if raised else "streams"
    many = bench.lengths.streams
    limits = {
        "gateway": ("--max-concurrent-rpcs", str(2 * many)),
        "decoder_service": ("--max-concurrent-rpcs", str(2 * many), "--max-queue", str(many)),
        "vision_service": ("--max-concurrent-rpcs", str(2 * many), "--max-queue", str(many)),
    }
    async with bench.own(Plan(bench.bundle, gateways=2, flags=limits if raised else {}), name) as deployment:
        door = deployment.gateways.door
        return await _at_once(bench, name, deployment, door, many=many, questions=list(bench.answers), seconds=300)


async def pictures(bench: Bench) -> Row:
    """Two hundred pictures at once, none of which any cache has; those refused are sent again after their delay."""
    deployment = await bench.shared(gateways=2)
    fresh = [question for question in bench.answers if question.fresh]

    door = deployment.gateways.door
    return await _at_once(
        bench, "pictures", deployment, door, many=bench.lengths.pictures, questions=fresh, seconds=120
    )


async def _at_once(
    bench: Bench,
    name: str,
    deployment: Deployment,
    door: Callable[[int], Door],
    *,
    many: int,
    questions: Sequence[Question],
    seconds: float,
) -> Row:
    """Ask all at once; then ask those again that were refused, until all have an answer."""
    asker = Asker(name, bench.answers, seconds=seconds)
    doors = [door(number) for number in range(many)]
    waiting = list(range(many))
    began = time.monotonic()
    rounds = 0
    try:
        while waiting and rounds < 100:
            rounds += 1
            outcomes: list[Outcome] = await asyncio.gather(
                *(asker.ask(doors[number], questions[number % len(questions)]) for number in waiting)
            )
            waiting = [n for n, o in zip(waiting, outcomes, strict=True) if o.kind is Kind.REFUSED]
            if waiting:
                await asyncio.sleep(1)
    finally:
        await _closed(doors)
    row = Row(name, figures={"seconds until all were answered": round(time.monotonic() - began, 1), "rounds": rounds})
    if waiting:
        row.problems.append(f"{len(waiting)} had no answer after {rounds} rounds")
    return await bench.judged(row, asker.ledger, deployment, allowed=BUSY)


async def _closed(doors: Sequence[Door]) -> None:
    for door in doors:
        await door.close()
