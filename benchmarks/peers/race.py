"""The race: `python -m benchmarks.peers.race RACE.toml`, in turns, on the same prompts, medians."""

from __future__ import annotations

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
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from benchmarks.errors import BenchError
from benchmarks.machine import Machine
from benchmarks.peers.process import Peer, started
from benchmarks.report import Report, Table
from benchmarks.spread import Spread

_Count = Annotated[int, Field(ge=1)]


class _Toml(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Run(_Toml):
    """Prompts that are continued at the same time."""

    streams: _Count
    prompt: _Count
    new: _Count


class Entrant(_Toml):
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


class Race(_Toml):
    """The whole race.

    Attributes:
        peers: Who takes part.
        threads: Threads that each may use.
        repeats: How many turns each has.
        seed: Of the prompts.
        tokens: The prompts' ids are from here up to there: those of ordinary text in every peer's tokenizer.
        prefill: Lengths of the prompts that are only read.
        runs: What is continued.
        seconds: Longest wait for one answer.
    """

    peers: list[Entrant] = Field(min_length=1)
    threads: _Count
    repeats: _Count = 3
    seed: int = 0
    tokens: tuple[int, int] = (1000, 100_000)
    prefill: list[_Count] = [128, 512, 1024]
    runs: list[Run] = [Run(streams=n, prompt=128, new=128) for n in (1, 4, 8, 16)]
    seconds: float = 3600.0

    @classmethod
    def load(cls, path: Path) -> Race:
        """Read it from a file.

        Raises:
            BenchError: It is not there, or not a race.
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
    def context(self) -> int:
        """Most tokens of a prompt and its answer."""
        return max([*(length + 1 for length in self.prefill), *(run.prompt + run.new for run in self.runs)])

    @property
    def streams(self) -> int:
        """Most prompts at once."""
        return max([1, *(run.streams for run in self.runs)])


@dataclass(frozen=True)
class Heat:
    """One thing that every peer is asked, and how many tokens it is about.

    Attributes:
        name: For people.
        tokens: Read, or new ones.
        question: As the peers understand it.
    """

    name: str
    tokens: int
    question: dict[str, Any]


@dataclass(frozen=True)
class Result:
    """What one peer took for one thing. Seconds are the peer's own."""

    peer: str
    heat: str
    seconds: Spread
    tokens_per_second: float


@dataclass(frozen=True)
class Results:
    """All of it.

    Attributes:
        versions: Of each peer's libraries.
        load_seconds: What loading took each of them, the last time.
        results: One for each peer and each thing.
    """

    versions: dict[str, dict[str, str]]
    load_seconds: dict[str, float]
    results: list[Result]


def heats(race: Race, turn: int) -> Iterator[Heat]:
    """What is asked in one turn: the same of every peer, and other prompts in every turn, so that no cache helps."""
    random = np.random.default_rng([race.seed, turn])

    def prompt(length: int) -> list[int]:
        return [int(token) for token in random.integers(*race.tokens, length)]

    for length in race.prefill:
        yield Heat(f"prefill {length}", length, {"do": "prefill", "prompt": prompt(length)})
    for run in race.runs:
        prompts = [prompt(run.prompt) for _ in range(run.streams)]
        question = {"do": "generate", "prompts": prompts, "new_tokens": run.new}
        name = f"{run.streams} x ({run.prompt} + {run.new})"
        yield Heat(name, run.streams * run.new, question)


def _warm_up(race: Race) -> dict[str, Any]:
    """Whatever happens only once happens here: a prompt that is in no heat, and a short answer."""
    first, last = race.tokens
    prompt = [first + n % (last - first) for n in range(min(race.context - 4, 64))]
    return {"do": "generate", "prompts": [prompt], "new_tokens": 4}


async def run(race: Race, tell: Callable[[str], None]) -> Results:
    """Run it: in each turn every peer, one after the other, in an order that changes.

    A peer's process lives for its turn alone: memory and cores are the next one's then.

    Args:
        race: Who, and what.
        tell: Told what goes on.

    Raises:
        BenchError: A peer fails, or does less than it was asked.
    """
    taken: dict[tuple[str, str], list[float]] = {}
    tokens: dict[str, int] = {}
    versions: dict[str, dict[str, str]] = {}
    loads: dict[str, float] = {}
    for turn in range(race.repeats):
        for entrant in _rotated(race.peers, turn):
            tell(f"turn {turn + 1} of {race.repeats}: {entrant.name}")
            async with _opened(entrant, race) as peer:
                versions[entrant.name], loads[entrant.name] = peer.versions, peer.load_seconds
                await peer.ask(_warm_up(race))
                for heat in heats(race, turn):
                    taken.setdefault((entrant.name, heat.name), []).append(await _seconds(peer, entrant, heat))
                    tokens[heat.name] = heat.tokens
    results = [_result(peer.name, heat, taken[peer.name, heat], tokens[heat]) for heat in tokens for peer in race.peers]
    return Results(versions, loads, results)


def _rotated(peers: Sequence[Entrant], turn: int) -> Iterator[Entrant]:
    start = turn % len(peers)
    return itertools.islice(itertools.cycle(peers), start, start + len(peers))


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


async def _seconds(peer: Peer, entrant: Entrant, heat: Heat) -> float:
    answer = await peer.ask(heat.question)
    if heat.question["do"] == "generate" and answer["new_tokens"] != heat.tokens:
        raise BenchError(f"{entrant.name} wrote {answer['new_tokens']} tokens of {heat.tokens}")
    return float(answer["seconds"])


def _result(peer: str, heat: str, seconds: Sequence[float], tokens: int) -> Result:
    spread = Spread.of(seconds)
    return Result(peer, heat, spread, tokens / spread.median)


def table(race: Race, results: Results) -> Table:
    """Tokens a second: a row for each thing, a column for each peer."""
    names = [peer.name for peer in race.peers]
    rates = {(result.heat, result.peer): result.tokens_per_second for result in results.results}
    rows = dict.fromkeys(result.heat for result in results.results)
    return Table(
        "Tokens a second, medians", ["", *names], [[row, *(rates[row, name] for name in names)] for row in rows]
    )


def main(words: Sequence[str] | None = None) -> int:
    """Run a race from the command line; 0 when it was run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers.race", description="Race engines.")
    parser.add_argument("race", type=Path, help="a file like benchmarks/peers/race.example.toml")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    options = parser.parse_args(words)
    machine = Machine.here()
    try:
        race = Race.load(options.race)
        results = asyncio.run(run(race, lambda line: print(line, file=sys.stderr, flush=True)))
    except BenchError as error:
        print(error, file=sys.stderr)
        return 1
    plan = race.model_dump(mode="json", exclude={"peers"})
    subject = {peer.name: peer.model for peer in race.peers}
    report = Report("peers", subject, plan, results, [table(race, results)])
    print(json.dumps(report.document(machine), ensure_ascii=False) if options.json else report.text(machine))
    return 0


if __name__ == "__main__":
    sys.exit(main())
