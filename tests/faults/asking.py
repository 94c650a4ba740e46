"""Asks questions, compares each answer with the one at rest, and keeps the ledger."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.faults.doors import Door, GrpcDoor, HttpDoor, Reply
from tests.faults.ledger import Kind, Ledger, Outcome
from tests.faults.questions import Question

_MARGIN = 15.0
"""Seconds over its deadline after which a request hangs."""


@dataclass(frozen=True)
class Answer:
    """An answer at rest."""

    text: str
    token_ids: tuple[int, ...]


Answers = Mapping[Question, Answer]


@dataclass(frozen=True)
class Gateways:
    """Where the gateways answer.

    Attributes:
        grpc: Their gRPC addresses.
        http: Their URLs.
        keys: API keys of the clients, in turn; empty: none.
        ca: Has signed the gateways' certificates; None: plain text.
    """

    grpc: Sequence[str]
    http: Sequence[str]
    keys: Sequence[str] = ()
    ca: Path | None = None

    def doors(self) -> list[Door]:
        """A client of each kind."""
        return [self.door(number) for number in range(3)]

    def door(self, number: int) -> Door:
        """A client: over gRPC, over HTTP, or over HTTP without a stream. One in two has the second gateway first."""
        key = self.keys[number % len(self.keys)] if self.keys else ""
        if number % 3 == 0:
            return GrpcDoor(self.grpc, key, self.ca)
        turn = number // 3 % len(self.http)
        return HttpDoor([*self.http[turn:], *self.http[:turn]], stream=number % 3 == 1, key=key, ca=self.ca)


class DisagreementError(Exception):
    """At rest a question has no answer, or not the same one each time."""


async def answers_at_rest(gateways: Gateways, questions: Sequence[Question], *, rounds: int = 2) -> Answers:
    """Ask every question alone, several times, through every door.

    Raises:
        DisagreementError: There is none to compare with.
    """
    found: dict[Question, Answer] = {}
    doors = gateways.doors()
    try:
        for _, question, door in itertools.product(range(rounds), questions, doors):
            reply = Reply()
            await door.ask(question, "", reply, 60)
            if not reply.finished:
                raise DisagreementError(f"{question.words!r} over {door.name}: {reply.reason}: {reply.detail}")
            answer = found.setdefault(question, Answer(reply.text, tuple(reply.token_ids)))
            if reply.text != answer.text or (reply.token_ids and tuple(reply.token_ids) != answer.token_ids):
                raise DisagreementError(f"{question.words!r} over {door.name}: {reply.text!r}, not {answer.text!r}")
    finally:
        for door in doors:
            await door.close()
    if len({answer.text for answer in found.values()}) < len(questions):
        raise DisagreementError("two questions have one answer: mistaken for each other they would not show")
    return found


class Asker:
    """Asks, compares, and keeps the ledger.

    Args:
        name: Begins the requests' ids.
        answers: At rest.
        seconds: Deadline of a request.
    """

    def __init__(self, name: str, answers: Answers, *, seconds: float = 60.0) -> None:
        self.ledger = Ledger()
        self.answers = answers
        self._name = name
        self._seconds = seconds
        self._numbers = itertools.count()

    async def ask(self, door: Door, question: Question, *, leave_after: float | None = None) -> Outcome:
        """Ask one question.

        Args:
            door: The client.
            question: One of those with a known answer.
            leave_after: Seconds after which the client leaves.
        """
        request_id = f"{self._name}-{next(self._numbers)}"
        began = time.monotonic()
        self.ledger.open(request_id, began)
        reply = Reply()
        left = hung = False
        place = ""
        limit = self._seconds + _MARGIN if leave_after is None else leave_after
        try:
            async with asyncio.timeout(limit):
                await door.ask(question, request_id, reply, self._seconds)
        except TimeoutError as error:
            left, hung = leave_after is not None, leave_after is None
            frames = traceback.extract_tb(error.__cause__.__traceback__ if error.__cause__ else None)
            place = "; ".join(f"{Path(frame.filename).name}:{frame.lineno} in {frame.name}" for frame in frames[-4:])
        kind = Kind.HUNG if hung else self._kind(reply, self.answers[question], left=left)
        outcome = Outcome(
            request_id,
            door.name,
            kind,
            began,
            time.monotonic(),
            reply.attempts,
            reply.reason,
            f"{reply.attempts} attempts, {len(reply.text)} characters, at {place}"
            if hung
            else self._detail(kind, reply, question),
        )
        self.ledger.close(outcome)
        return outcome

    @staticmethod
    def _kind(reply: Reply, answer: Answer, *, left: bool) -> Kind:
        if reply.finished and not reply.reason:
            same = reply.text == answer.text and reply.token_ids in ([], list(answer.token_ids))
            return Kind.RIGHT if same else Kind.WRONG
        begins = (
            answer.text.startswith(reply.text) and list(answer.token_ids[: len(reply.token_ids)]) == reply.token_ids
        )
        if not begins:
            return Kind.WRONG
        if left:
            return Kind.CANCELLED
        if reply.broken:
            return Kind.CUT
        return Kind.REFUSED if reply.typed else Kind.UNTYPED

    def _detail(self, kind: Kind, reply: Reply, question: Question) -> str:
        if kind is Kind.WRONG:
            return f"{question.words!r}: {reply.text!r}, not {self.answers[question].text!r}"
        return reply.detail


class Load:
    """Clients that ask one question after the other until they are told to end; a third of them at each kind of door.

    Args:
        asker: Keeps the ledger.
        gateways: Where they ask.
        clients: How many ask at once.
        pause: Seconds between a client's questions.
        seed: Of the order of their questions.
    """

    def __init__(
        self, asker: Asker, gateways: Gateways, *, clients: int = 16, pause: float = 0.0, seed: int = 0
    ) -> None:
        self._asker = asker
        self._gateways = gateways
        self._clients = clients
        self._pause = pause
        self._random = random.Random(seed)
        self._ending = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self.ended = 0.0

    @property
    def ledger(self) -> Ledger:
        """Of the asker."""
        return self._asker.ledger

    async def __aenter__(self) -> Self:
        for number in range(self._clients):
            self._tasks.append(asyncio.create_task(self._run(number, random.Random(self._random.random()))))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        self.ended = time.monotonic()
        if error is not None:
            for task in self._tasks:
                task.cancel()
        results = await asyncio.gather(*self._tasks, return_exceptions=True)
        if error is None:
            for result in results:
                if isinstance(result, BaseException):
                    raise result

    async def _run(self, number: int, order: random.Random) -> None:
        door = self._gateways.door(number)
        questions = list(self._asker.answers)
        try:
            while not self._ending.is_set():
                outcome = await self._asker.ask(door, order.choice(questions))
                # A client that is refused waits, too: else it would be refused thousands of times.
                await asyncio.sleep(self._pause if outcome.kind is Kind.RIGHT else 0.2)
        finally:
            await door.close()

    async def answered(self, more: int, *, seconds: float = 120.0) -> bool:
        """Wait for more right answers. Returns whether they came in time."""

        def right() -> int:
            return sum(outcome.kind is Kind.RIGHT for outcome in self.ledger.outcomes)

        enough, until = right() + more, time.monotonic() + seconds
        while right() < enough and time.monotonic() < until:  # noqa: ASYNC110  # the ledger has no events
            await asyncio.sleep(0.05)
        return right() >= enough
