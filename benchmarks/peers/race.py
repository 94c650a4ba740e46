"""The race over text: `python -m benchmarks.peers.race RACE.toml`, in turns, on the same prompts, medians."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from benchmarks.peers import turns
from benchmarks.peers.turns import Count, Heat, Race, Results, Toml
from benchmarks.report import Table


class Run(Toml):
    """Prompts that are continued concurrently."""

    streams: Count
    prompt: Count
    new: Count


class TextRace(Race):
    """The whole race.

    Attributes:
        tokens: Range of the prompts' ids: ordinary text in every peer's tokenizer.
        prefill: Lengths of the prompts that are only prefilled.
        runs: Prompts that are continued.
    """

    tokens: tuple[int, int] = (1000, 100_000)
    prefill: tuple[Count, ...] = (128, 512, 1024)
    runs: tuple[Run, ...] = tuple(Run(streams=n, prompt=128, new=128) for n in (1, 4, 8, 16))

    @property
    def context(self) -> int:
        """Most tokens of a prompt and its answer."""
        return max([*(length + 1 for length in self.prefill), *(run.prompt + run.new for run in self.runs)])

    @property
    def streams(self) -> int:
        """Most prompts at once."""
        return max([1, *(run.streams for run in self.runs)])

    def heats(self, turn: int) -> Iterator[Heat]:
        """See `Race`."""
        random = np.random.default_rng([self.seed, turn])

        def prompt(length: int) -> list[int]:
            return [int(token) for token in random.integers(*self.tokens, length)]

        for length in self.prefill:
            yield Heat(f"prefill {length}", {"do": "prefill", "prompt": prompt(length)}, length)
        for run in self.runs:
            prompts = [prompt(run.prompt) for _ in range(run.streams)]
            question = {"do": "generate", "prompts": prompts, "new_tokens": run.new}
            yield Heat(f"{run.streams} x ({run.prompt} + {run.new})", question, run.streams * run.new)

    def warm_up(self) -> Iterator[dict[str, Any]]:
        """A prompt that is in no heat, and a short answer."""
        first, last = self.tokens
        prompt = [first + n % (last - first) for n in range(min(self.context - 4, 64))]
        yield {"do": "generate", "prompts": [prompt], "new_tokens": 4}


def tables(race: TextRace, results: Results) -> list[Table]:
    """Tokens per second: a row for each heat, a column for each peer."""
    names = [peer.name for peer in race.peers]
    rates = {(result.heat, result.peer): result.tokens_per_second for result in results.results}
    rows = dict.fromkeys(result.heat for result in results.results)
    shown = [[row, *(rates.get((row, name)) for name in names)] for row in rows]
    return [Table("Tokens per second, medians", ["", *names], shown)]


def main(words: Sequence[str] | None = None) -> int:
    """Run a race from the command line; returns the exit code."""
    return turns.main(TextRace, tables, words, module="benchmarks.peers.race")


if __name__ == "__main__":
    sys.exit(main())
