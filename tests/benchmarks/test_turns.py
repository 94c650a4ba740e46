"""What all races have in common: parts of a race, its record, and what a peer leaves behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path

import psutil
import pytest

from benchmarks.errors import BenchError
from benchmarks.peers import race
from benchmarks.peers.record import Measured, Record
from benchmarks.peers.turns import Part, Results, run
from tests.benchmarks.test_peers import entrant, raced, small


def test_a_race_is_run_in_parts(tmp_path: Path) -> None:
    """What the record has is not asked again, and the results are of everything that it has."""
    given, file, told = small(entrant("one"), entrant("two")), tmp_path / "race.jsonl", []

    def ran(**part: list[str] | list[int]) -> Results:
        told.clear()
        return asyncio.run(run(Part(given, **part), Record(given.plan, file), told.append))

    first = ran(peers=["two"], heats=["prefill 8"], turns=[2])
    assert told == ["turn 2 of 2: two"]
    assert [(result.peer, result.heat) for result in first.results] == [("two", "prefill 8")]
    (shown,) = race.tables(given, first)
    assert [row[:2] for row in shown.rows] == [["prefill 8", None]]

    whole = ran()
    assert told == ["turn 1 of 2: one", "turn 1 of 2: two", "turn 2 of 2: two", "turn 2 of 2: one"]
    assert [result.seconds.count for result in whole.results if result.seconds] == [2] * 6
    kept = [line for line in map(json.loads, file.read_text().splitlines()) if "heat" in line]
    assert len(kept) == 12
    assert kept[0]["seconds"] == first.results[0].seconds.median  # type: ignore[union-attr]  # it was measured

    assert ran() == whole
    assert told == []


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ({"peers": ["three"]}, "the race has no peer three: there are one, two"),
        ({"heats": ["prefill 9"]}, "the race has no heat prefill 9: there are prefill 8, 1 x"),
        ({"turns": [0]}, "the race has no turn 0: there are 1, 2"),
    ],
)
def test_a_part_of_what_is_in_the_race(part: dict[str, list[str]], says: str) -> None:
    """Who or what is not in the file is named, with what is."""
    with pytest.raises(BenchError, match=says):
        Part(small(entrant("one"), entrant("two")), **part)


def test_a_record_is_of_one_race(tmp_path: Path) -> None:
    """Other peers and more turns may join; where something else is asked, or nothing can be read, it is refused."""
    file = tmp_path / "race.jsonl"
    measured = Measured("one", "prefill 8", 0, seconds=1.5)
    Record(small(entrant("one")).plan, file).add(measured)
    again = Record(small(entrant("two"), entrant("one"), repeats=5).plan, file)
    assert again.of("one", "prefill 8") == [measured]
    assert (again.has("one", "prefill 8", 0), again.has("one", "prefill 8", 1)) == (True, False)
    with pytest.raises(BenchError, match=r"race\.jsonl is the record of another race"):
        Record(small(entrant("one"), prefill=[9]).plan, file)
    file.write_text("{}\n")
    with pytest.raises(BenchError, match="cannot be read as the record of a race"):
        Record(small(entrant("one")).plan, file)
    with pytest.raises(BenchError, match="cannot be written: No such file"):
        Record(small(entrant("one")).plan, tmp_path / "no" / "race.jsonl")


def test_nothing_of_a_peer_is_left() -> None:
    """Not even a process that it has started and did not stop."""
    results = raced(small(entrant("p", "begets"), repeats=1))
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(int(results.versions["p"]["child"])).wait(30)
