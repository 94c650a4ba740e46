"""The harness finds what it is for: wrong, untyped, hung and lost answers are told from right ones."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from tests.faults.asking import Answer, Asker
from tests.faults.doors import Reply
from tests.faults.ledger import Kind, Ledger, Outcome
from tests.faults.questions import Question

QUESTION = Question("What?")
ANSWERS = {QUESTION: Answer("a circle", (5, 6, 7))}


class Scripted:
    """A door that makes of every reply what a test says; nothing is sent."""

    name = "scripted"

    def __init__(self, script: Callable[[Reply], None]) -> None:
        self._script = script

    async def ask(self, question: Question, request_id: str, reply: Reply, seconds: float) -> None:
        reply.begin()
        self._script(reply)
        if not reply.finished and not reply.reason:
            await asyncio.Event().wait()

    async def close(self) -> None:
        pass


def says(text: str, *token_ids: int, **more: object) -> Callable[[Reply], None]:
    """A script."""

    def script(reply: Reply) -> None:
        reply.text, reply.token_ids = text, list(token_ids)
        for name, value in more.items():
            setattr(reply, name, value)

    return script


@pytest.mark.parametrize(
    ("script", "kind"),
    [
        (says("a circle", 5, 6, 7, finished=True), Kind.RIGHT),
        (says("a circle", finished=True), Kind.RIGHT),  # over HTTP there are no ids
        (says("a square", 5, 6, 7, finished=True), Kind.WRONG),
        (says("a circle", 5, 6, 8, finished=True), Kind.WRONG),
        (says("a circ", finished=True), Kind.WRONG),  # cut short, and said to be complete
        (says("a c", 5, reason="DECODER_UNAVAILABLE", typed=True), Kind.REFUSED),
        (says("a s", 5, reason="DECODER_UNAVAILABLE", typed=True), Kind.WRONG),  # what came before is another answer
        (says("", reason="UNKNOWN"), Kind.UNTYPED),
        (says("", reason="UNAVAILABLE", broken=True), Kind.CUT),
        (says("a circle", 5, 6, 7, finished=True, reason="INTERNAL"), Kind.UNTYPED),  # an error after the end
    ],
)
async def test_replies_are_told_apart(script: Callable[[Reply], None], kind: Kind) -> None:
    """By text, tokens and error."""
    asker = Asker("test", ANSWERS)
    assert (await asker.ask(Scripted(script), QUESTION)).kind is kind
    assert asker.ledger.counts().lost == 0


async def test_a_request_without_an_end_hangs() -> None:
    """And one whose client leaves is cancelled."""
    asker = Asker("test", ANSWERS, seconds=-15)  # with the margin: at once
    assert (await asker.ask(Scripted(says("a ")), QUESTION)).kind is Kind.HUNG
    assert (await asker.ask(Scripted(says("a ")), QUESTION, leave_after=0)).kind is Kind.CANCELLED
    assert (await asker.ask(Scripted(says("b ")), QUESTION, leave_after=0)).kind is Kind.WRONG


def _ended(request_id: str, at: float, **more: object) -> Outcome:
    return Outcome(request_id, "grpc", Kind.RIGHT, at, at, **more)  # type: ignore[arg-type]


def test_moved_and_lost_requests_are_counted() -> None:
    """Moved: the client or the gateway has tried again. Lost: nobody knows."""
    ledger = Ledger()
    for name in "abcd":
        ledger.open(name, 0)
    ledger.close(_ended("a", 1))
    ledger.close(_ended("b", 1, attempts=2))
    ledger.close(_ended("c", 1))
    counts = ledger.counts(moved=["c", "elsewhere"])
    assert (counts.sent, counts.right, counts.moved, counts.lost) == (4, 1, 2, 1)


def test_recovery_is_when_half_of_the_rate_is_back() -> None:
    """Ten answers a second, none for three seconds after second 10, and ten again."""
    ledger = Ledger()
    for tick in [*range(100), *range(130, 300)]:
        name = f"{tick}"
        ledger.open(name, tick / 10)
        ledger.close(_ended(name, tick / 10 + 0.01))
    assert ledger.rate(0, 10) == 10
    assert ledger.recovered(10, since=10, until=30) == pytest.approx(2.0)  # two seconds from there have ten answers
    assert ledger.recovered(10, since=5, until=30) == 0
    assert ledger.recovered(50, since=10, until=30) is None
