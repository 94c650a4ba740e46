"""Common to all races: entrants, turns, medians, the record of measurements, the command line."""

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
    """Base of the tables of a race's file."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Entrant(Toml):
    """An engine that takes part.

    Attributes:
        name: Its name.
        python: Interpreter of its environment.
        module: The module to run.
        model: Path of the model.
        environment: Its environment variables.
    """

    name: str
    python: Path
    module: str
    model: str
    environment: dict[str, str] = {}


@dataclass(frozen=True)
class Heat:
    """One request to every peer.

    Attributes:
        name: Name for people.
        question: The request.
        tokens: Number of tokens for the rate: prefilled or generated. None if only the seconds count.
        before: A request right before it that is not measured, or None.
        media_tokens: Tokens of media if no peer resizes them; None without pictures.
    """

    name: str
    question: dict[str, Any]
    tokens: int | None = None
    before: dict[str, Any] | None = None
    media_tokens: int | None = None


class Race(Toml, abc.ABC):
    """A whole race.

    Attributes:
        peers: The engines.
        threads: Most threads of each.
        repeats: Number of turns.
        seed: Seed of generated prompts and files.
        seconds: Timeout of an answer.
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
        """The requests of one turn: the same for every peer, and new in each turn, so that no cache has them."""

    @abc.abstractmethod
    def warm_up(self) -> Iterator[dict[str, Any]]:
        """The requests before each turn, for warm-up."""

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a race's file.

        Raises:
            BenchError: The file does not exist or is invalid.
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
        """The requests, independent of the peers and the number of turns."""
        return self.model_dump(mode="json", exclude={"peers", "repeats", "seconds"})


R = TypeVar("R", bound=Race)


@dataclass(frozen=True)
class Part(Generic[R]):
    """A race, or a part of one: a whole race may take hours.

    Attributes:
        race: The whole race.
        peers: Names of the peers; empty: all.
        heats: Names of the heats; empty: all.
        turns: Numbers of the turns, from 1; empty: all.

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
        """The turns with their peers, in an order that rotates from turn to turn."""
        for turn in range(self.race.repeats):
            for entrant in _rotated(self.race.peers, turn):
                if (not self.turns or turn + 1 in self.turns) and (not self.peers or entrant.name in self.peers):
                    yield turn, entrant

    def asked(self, turn: int) -> Iterator[Heat]:
        """The requests of a turn."""
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
    """The result of one peer for one heat. Seconds are measured by the peer.

    Attributes:
        peer: Name of the peer.
        heat: Name of the heat.
        seconds: Durations; None if the peer does not support the heat.
        tokens_per_second: Median rate of the heat's tokens.
        prompt_tokens: Tokens of all prompts, as counted by the peer.
        cannot: The reason why the peer does not support the heat.
    """

    peer: str
    heat: str
    seconds: Spread | None
    tokens_per_second: float | None
    prompt_tokens: int | None
    cannot: str | None


@dataclass(frozen=True)
class Results:
    """All results.

    Attributes:
        versions: Versions of each peer's libraries.
        load_seconds: Load time of each peer in the last run.
        results: One for each measured peer and heat.
    """

    versions: dict[str, dict[str, str]]
    load_seconds: dict[str, float]
    results: list[Result]


async def run(part: Part[R], record: Record, report: Callable[[str], None]) -> Results:
    """Measure what the record does not have yet: in each turn every peer, one after the other.

    A peer's process ends with its turn, so that the next one has all memory and cores.

    Args:
        part: The part of the race to run.
        record: Earlier measurements; new ones are added.
        report: Called with a line for each turn.

    Raises:
        BenchError: A peer fails, or generates fewer tokens than requested.
    """
    race = part.race
    for turn, entrant in part.rounds():
        heats = [heat for heat in part.asked(turn) if not record.has(entrant.name, heat.name, turn)]
        if not heats:
            continue
        report(f"turn {turn + 1} of {race.repeats}: {entrant.name}")
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
                raise BenchError(f"{name} generated {answer['new_tokens']} tokens of {asked}")
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
    """Run a race from the command line; returns the exit code.

    Args:
        kind: The kind of race.
        tables: Makes tables of its results.
        words: The arguments; None takes the process's own.
        module: Name of the module, for the usage line.
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
        help="file of measurements; those in it are not repeated, and tables show all of them",
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
