"""What is made of measurements: a few numbers, tables, JSON, a picture."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks import picture
from benchmarks.errors import BenchError
from benchmarks.machine import Machine
from benchmarks.report import Curve, Report, Table, plain, table_of
from benchmarks.spread import Spread


def test_a_spread_of_one_to_a_hundred_and_one() -> None:
    """Percentiles are those of the whole, wherever its parts stand."""
    spread = Spread.of([float(value) for value in (*range(51, 102), *range(1, 51))])
    assert spread == Spread(count=101, median=51.0, p90=91.0, p99=100.0, least=1.0, greatest=101.0)


def test_between_two_measurements_a_percentile_is_interpolated() -> None:
    """The median of an even number of measurements lies between the two in the middle."""
    spread = Spread.of([1.0, 2.0])
    assert (spread.median, spread.p90) == (1.5, pytest.approx(1.9))
    assert Spread.of([3.0]) == Spread(1, 3.0, 3.0, 3.0, 3.0, 3.0)


def test_nothing_measured_is_no_spread() -> None:
    """Without a measurement there is no number to show."""
    with pytest.raises(ValueError, match="nothing was measured"):
        Spread.of([])


@dataclass(frozen=True)
class _Result:
    edge: int
    patches_per_second: float
    spread: Spread | None = None


def test_a_table_is_aligned() -> None:
    """Names stand left, numbers right and short, and what was not measured is a dash."""
    table = Table("Speed", ["what", "tok/s"], [["one", 1234.5], ["eleven", 0.01234], ["none", None]])
    assert table.text.splitlines() == [
        "Speed",
        "what     tok/s",
        "------  ------",
        "one      1,234",
        "eleven  0.0123",
        "none         -",
    ]


def test_a_table_of_dataclasses_has_a_column_for_each_field() -> None:
    """Results of a benchmark that has no table of its own are shown whole."""
    table = table_of("Encoder", [_Result(224, 300.0), _Result(448, 250.0)])
    assert table.head == ["edge", "patches per second", "spread"]
    assert table.rows == [[224, 300.0, None], [448, 250.0, None]]
    assert table_of("Encoder", []).rows == []


def test_the_json_has_its_shape() -> None:
    """What, where, of what and how, then the results, with every dataclass as an object; and it is JSON."""
    spread = Spread.of([1.0, 2.0, 3.0])
    results = {"all": [_Result(224, 300.0, spread)], "pair": (1, None)}
    report = Report("vision", {"model": "tiny"}, _Result(1, 2.0), results, [Table("t", ["a"], [[1]])])
    machine = Machine.here()
    document = json.loads(json.dumps(report.document(machine)))
    assert list(document) == ["bench", "format", "taken", "machine", "subject", "plan", "results"]
    assert (document["bench"], document["format"], document["subject"]) == ("vision", 1, {"model": "tiny"})
    assert document["machine"] == plain(machine)
    assert document["machine"].keys() == {"cpu", "cores", "memory_gib", "load", "system", "python", "versions"}
    assert document["plan"] == {"edge": 1, "patches_per_second": 2.0, "spread": None}
    assert document["results"]["pair"] == [1, None]
    assert document["results"]["all"][0]["spread"] == {
        "count": 3,
        "median": 2.0,
        "p90": spread.p90,
        "p99": spread.p99,
        "least": 1.0,
        "greatest": 3.0,
    }
    assert report.text(machine).startswith(f"{machine.line}\nmodel tiny\n\nt\n")


def test_the_machine_is_told(tmp_path: Path) -> None:
    """The processor's model is Linux's, or at least its kind; versions are of what is installed."""
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nmodel name\t: A Processor: fast\nmodel name\t: Another\n")
    machine = Machine.here(info)
    assert machine.cpu == "A Processor: fast"
    assert machine.cores >= 1
    assert machine.memory_gib > 0
    assert "numpy" in machine.versions
    assert Machine.here(tmp_path / "missing").cpu


CURVES = [Curve("One", "x", "y", [(1, 10.0), (2, 15.0)]), Curve("Two", "x", "y", [(64, 0.5)])]


@pytest.mark.parametrize(("name", "begins"), [("a.png", b"\x89PNG"), ("a.svg", b"<?xml")])
def test_a_picture_is_drawn(tmp_path: Path, name: str, begins: bytes) -> None:
    """As the ending of its name says."""
    picture.draw(CURVES, tmp_path / name, title="tiny")
    assert (tmp_path / name).read_bytes().startswith(begins)


@pytest.mark.parametrize("name", ["a.nothing", "missing/a.png"])
def test_a_picture_that_cannot_be_written(tmp_path: Path, name: str) -> None:
    """An ending that means nothing and a folder that is not there are said in a sentence."""
    with pytest.raises(BenchError, match="cannot be written"):
        picture.draw(CURVES, tmp_path / name, title="tiny")


def test_without_matplotlib_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says what to install, before anything is measured."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(BenchError, match=r"pip install 'triptych\[dev\]'"):
        picture.check()
