"""What all races have in common: who takes part, turns, medians, a record of what was measured, the command line."""

from __future__ import annotations

import abc
import argparse
import asyncio
import itertools
import json
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from benchmarks.errors import BenchError
from benchmarks.machine import Machine
from benchmarks.peers.process import Peer, started
from benchmarks.peers.record import Measured, Record
from benchmarks.report import Report, Table
from benchmarks.spread import Spread

Count = Annotated[int, Field(ge=1)]


class Toml(BaseModel):
    """A table of a race's file."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Entrant(Toml):
    """Who takes part.

    Attributes:
        name: What it is called.
        python: Interpreter of its environment.
        module: What that runs.
        model: What it loads.
        environment: Variables for it.
    """

    name: str
    python: Path
    module: str
    model: str
    environment: dict[str, str] = {}


@dataclass(frozen=True)
class Heat:
    """One thing that every peer is asked.

    Attributes:
        name: For people.
        question: As the peers understand it.
        tokens: Those that it is about: read, or new ones. None where only the seconds matter.
        before: What is asked right before it and not measured, or None.
        media_tokens: Of the prompts, where nobody makes a picture smaller; None where there are no pictures.
    """

    name: str
    question: dict[str, Any]
    tokens: int | None = None
    before: dict[str, Any] | None = None
    media_tokens: int | None = None


class Race(Toml, abc.ABC):
    """A whole race.

    Attributes:
        peers: Who takes part.
        threads: Threads that each may use.
        repeats: How many turns each has.
        seed: Of what is drawn.
        seconds: Longest wait for one answer.
    """

    peers: list[Entrant] = Field(min_length=1)
    threads: Count
    repeats: Count = 3
    seed: int = 0
    seconds: float = 3600.0

    @property
    @abc.abstractmethod
    def context(self) -> int:
        """Most tokens of a prompt and its answer."""

    @property
    @abc.abstractmethod
    def streams(self) -> int:
        """Most prompts at once."""

    @abc.abstractmethod
    def heats(self, turn: int) -> Iterator[Heat]:
        """What is asked in one turn: the same of every peer, and something new in each, so that no cache helps."""

    @abc.abstractmethod
    def warm_up(self) -> Iterator[dict[str, Any]]:
        """What is asked before: whatever happens only once happens there."""

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read it from a file.

        Raises:
            BenchError: It is not there, or not such a race.
        """
        try:
            return cls.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
        except OSError as error:
            raise BenchError(f"{path} cannot be read: {error.strerror}") from error
        except tomllib.TOMLDecodeError as error:
            raise BenchError(f"{path} is not TOML: {error}") from error
        except ValidationError as error:
            detail = error.errors(include_url=False)[0]
            raise BenchError(f"{path}: {'.'.join(map(str, detail['loc']))}: {detail['msg']}") from error

    @property
    def plan(self) -> dict[str, Any]:
        """What is asked, whoever is asked and how often."""
        return self.model_dump(mode="json", exclude={"peers", "repeats", "seconds"})


R = TypeVar("R", bound=Race)


@dataclass(frozen=True)
class Part(Generic[R]):
    """A race, or a part of one: the whole may take hours.

    Attributes:
        race: The whole.
        peers: Who is asked; empty: all.
        heats: What; empty: everything.
        turns: When, counted from 1; empty: in all.

    Raises:
        BenchError: The race has no such peer, heat or turn.
    """

    race: R
    peers: Sequence[str] = ()
    heats: Sequence[str] = ()
    turns: Sequence[int] = ()

    def __post_init__(self) -> None:
        _known("peer", self.peers, [peer.name for peer in self.race.peers])
        _known("heat", self.heats, [heat.name for heat in self.race.heats(0)])
        _known("turn", self.turns, range(1, self.race.repeats + 1))

    def rounds(self) -> Iterator[tuple[int, Entrant]]:
        """Turns, and who has them, in an order that changes from turn to turn."""
        for turn in range(self.race.repeats):
            for entrant in _rotated(self.race.peers, turn):
                if (not self.turns or turn + 1 in self.turns) and (not self.peers or entrant.name in self.peers):
                    yield turn, entrant

    def asked(self, turn: int) -> Iterator[Heat]:
        """What is asked in a turn."""
        return (heat for heat in self.race.heats(turn) if not self.heats or heat.name in self.heats)


def _known(what: str, given: Sequence[object], known: Sequence[object]) -> None:
    for one in given:
        if one not in known:
            raise BenchError(f"the race has no {what} {one}: there are {', '.join(map(str, known))}")


def _rotated(peers: Sequence[Entrant], turn: int) -> Iterator[Entrant]:
    start = turn % len(peers)
    return itertools.islice(itertools.cycle(peers), start, start + len(peers))


@dataclass(frozen=True)
class Result:
    """What one peer took for one thing. Seconds are the peer's own.

    Attributes:
        peer: Who.
        heat: What.
        seconds: How long; None where it cannot do it.
        tokens_per_second: In the median, of the tokens that the heat is about.
        prompt_tokens: Of all prompts, as the peer counts them.
        cannot: Why it cannot.
    """

    peer: str
    heat: str
    seconds: Spread | None
    tokens_per_second: float | None
    prompt_tokens: int | None
    cannot: str | None


@dataclass(frozen=True)
class Results:
    """All of it.

    Attributes:
        versions: Of each peer's libraries.
        load_seconds: What loading took each of them, the last time.
        results: One for each peer and each thing, but for those that were not asked.
    """

    versions: dict[str, dict[str, str]]
    load_seconds: dict[str, float]
    results: list[Result]


async def run(part: Part[R], record: Record, tell: Callable[[str], None]) -> Results:
    """Run what the record does not have yet: in each turn every peer, one after the other.

    A peer's process lives for its turn alone: memory and cores are the next one's then.

    Args:
        part: Who, and what.
        record: What was measured before; what is measured now is added.
        tell: Told what goes on.

    Raises:
        BenchError: A peer fails, or does less than it was asked.
    """
    race = part.race
    for turn, entrant in part.rounds():
        heats = [heat for heat in part.asked(turn) if not record.has(entrant.name, heat.name, turn)]
        if not heats:
            continue
        tell(f"turn {turn + 1} of {race.repeats}: {entrant.name}")
        async with _opened(entrant, race) as peer:
            record.loaded(entrant.name, peer.versions, peer.load_seconds)
            for question in race.warm_up():
                await peer.ask(question)
            for heat in heats:
                record.add(await _measured(peer, entrant.name, heat, turn))
    return _results(race, record)


def _opened(entrant: Entrant, race: Race) -> AbstractAsyncContextManager[Peer]:
    options = {"threads": race.threads, "context": race.context, "streams": race.streams}
    arguments = [entrant.model, *(word for name, value in options.items() for word in (f"--{name}", str(value)))]
    return started(
        entrant.name,
        entrant.python,
        entrant.module,
        arguments,
        environment=entrant.environment,
        seconds=race.seconds,
    )


async def _measured(peer: Peer, name: str, heat: Heat, turn: int) -> Measured:
    for question in (heat.before, heat.question):
        if question is None:
            continue
        answer = await peer.ask(question)
        if "cannot" in answer:
            return Measured(name, heat.name, turn, cannot=answer["cannot"])
        if "new_tokens" in question:
            asked = question["new_tokens"] * len(question.get("questions") or question.get("prompts") or [None])
            if answer["new_tokens"] != asked:
                raise BenchError(f"{name} wrote {answer['new_tokens']} tokens of {asked}")
    return Measured(name, heat.name, turn, seconds=answer["seconds"], prompt_tokens=answer.get("prompt_tokens"))


def _results(race: Race, record: Record) -> Results:
    results = [
        _result(heat, measured)
        for heat in race.heats(0)
        for peer in race.peers
        if (measured := record.of(peer.name, heat.name))
    ]
    return Results(record.versions, record.load_seconds, results)


def _result(heat: Heat, measured: Sequence[Measured]) -> Result:
    last = measured[-1]
    seconds = [one.seconds for one in measured if one.seconds is not None]
    spread = Spread.of(seconds) if seconds else None
    rate = heat.tokens / spread.median if spread and heat.tokens else None
    return Result(last.peer, heat.name, spread, rate, last.prompt_tokens, last.cannot)


def main(
    kind: type[R], tables: Callable[[R, Results], Sequence[Table]], words: Sequence[str] | None, *, module: str
) -> int:
    """Run a race from the command line; 0 when it was run.

    Args:
        kind: The race.
        tables: Its results for people.
        words: The command line; None: that of this process.
        module: What is run.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description="Race engines.")
    parser.add_argument("race", type=Path, help="a file like those in benchmarks/peers")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME", help="only this one; repeatable")
    parser.add_argument("--heat", action="append", default=[], metavar="NAME", help="only this one; repeatable")
    parser.add_argument("--turn", action="append", default=[], type=int, metavar="N", help="only this one; repeatable")
    parser.add_argument(
        "--record",
        type=Path,
        metavar="FILE",
        help="keep what is measured there; what it has is not measured again, and tables are of all that it has",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    options = parser.parse_args(words)
    machine = Machine.here()
    try:
        race = kind.load(options.race)
        part = Part(race, options.peer, options.heat, options.turn)
        record = Record(race.plan, options.record)
        results = asyncio.run(run(part, record, lambda line: print(line, file=sys.stderr, flush=True)))
    except BenchError as error:
        print(error, file=sys.stderr)
        return 1
    plan = race.model_dump(mode="json", exclude={"peers"})
    subject = {peer.name: peer.model for peer in race.peers}
    report = Report("peers", subject, plan, results, tables(race, results))
    print(json.dumps(report.document(machine), ensure_ascii=False) if options.json else report.text(machine))
    return 0
