"""Choosing by speeds, and keeping what was measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from decoder_service.engine.batching.calibration import widths
from decoder_service.engine.batching.pace import READING_STEP, Curve, Measurements, Pace, Speed

# One that is good at few rows, and one that is good at many: about the 2B model's on two cores.
NARROW = Speed(Curve((1, 4, 8), (0.07, 0.11, 0.20)), Curve((8, 32, 128), (0.18, 0.55, 2.2)))
WIDE = Speed(Curve((1, 4, 8), (0.09, 0.10, 0.12)), Curve((8, 32, 128), (0.12, 0.19, 0.6)))


def pace(**speeds: Speed) -> Pace:
    """A pace with the default settings."""
    return Pace(speeds, chunk_tokens=512, stall=1.5)


def test_curves_are_lines() -> None:
    """Between what was measured and beyond it; below it the least."""
    curve = Curve((1, 3), (1.0, 2.0))
    assert [curve.at(n) for n in (1, 2, 3, 5)] == pytest.approx([1.0, 1.5, 2.0, 3.0])
    assert Curve((8, 16), (1.0, 2.0)).at(2) == 1.0
    assert Curve((4,), (1.0,)).at(8) == 2.0


def test_each_step_takes_the_faster_graph() -> None:
    """The narrow one for one answer, the wide one for many and for prompts; a single graph does everything."""
    both = pace(int4=NARROW, int8=WIDE)
    assert [both.graph(n, 0) for n in (1, 8)] == ["int4", "int8"]
    assert both.graph(0, 128) == both.graph(1, 30) == "int8"
    alone = pace(int4=NARROW)
    assert (alone.graph(8, 0), alone.graph(0, 128)) == ("int4", "int4")


@pytest.mark.parametrize("answering", [1, 4, 8])
def test_answers_wait_no_longer_than_the_stall(answering: int) -> None:
    """A step that also reads takes at most `stall` of their own steps more, and about that where it can."""
    chosen = pace(int8=WIDE)
    together = answering + chosen.room(answering)
    assert WIDE.prefill.at(together) <= 2.5 * WIDE.decode.at(answering) < WIDE.prefill.at(together + 1)


def test_each_prompt_that_could_be_read_adds_to_the_stall() -> None:
    """Up to what a step without answers may read."""
    chosen = pace(int8=WIDE)
    room = chosen.room(4, prompts=3)
    assert WIDE.prefill.at(4 + room) <= (1 + 3 * 1.5) * WIDE.decode.at(4) < WIDE.prefill.at(4 + room + 1)
    assert chosen.room(4, prompts=1) == chosen.room(4) < room
    assert chosen.room(4, prompts=50) == chosen.room(0) - 4


def test_a_step_that_only_reads_is_short() -> None:
    """So that what comes or goes meanwhile does not wait long; never more than chunk_tokens, never nothing."""
    assert NARROW.prefill.at(pace(int4=NARROW).room(0)) <= READING_STEP
    quick = Speed(Curve((1,), (1e-5,)), Curve((1,), (1e-6,)))
    assert pace(int4=quick).room(0) == 512
    slow = Speed(Curve((1,), (1.0,)), Curve((1,), (9.0,)))
    assert pace(int4=slow).room(0) == 1
    assert pace(int4=slow).room(1) == 1


def test_real_steps_correct_the_measurements() -> None:
    """Chunks that take longer than measured become smaller, and steps that do let them grow; within bounds."""
    chosen = pace(int8=WIDE)
    alone, beside = chosen.room(0), chosen.room(4)

    def takes(factor: float, answers: int, tokens: int) -> None:
        for _ in range(20):
            expected = WIDE.prefill.at(answers + tokens) if tokens else WIDE.decode.at(answers)
            chosen.took("int8", answers, tokens, factor * expected)

    takes(2, 0, alone)
    assert chosen.room(0) < alone
    assert chosen.room(4) == beside  # only chunks were seen to be slow
    takes(2, 4, beside)
    assert abs(chosen.room(4) - beside) <= 1  # answers alone are taken to be slower, too
    takes(1, 4, 0)
    assert chosen.room(4) < beside - 1  # until they are seen to be as fast as measured
    takes(2, 4, 0)
    assert abs(chosen.room(4) - beside) <= 1
    for _ in range(20):  # slower than answers alone are: 3 instead of 2
        takes(3, 4, beside)
        takes(2, 4, 0)
    assert chosen.room(4) < beside - 1
    takes(2, 4, beside)
    takes(2, 4, 0)
    assert abs(chosen.room(4) - beside) <= 1
    for _ in range(100):
        chosen.took("int8", 4, 0, 1e9)
    assert chosen.room(4) <= 512


def test_each_graph_is_corrected_by_its_own_runs() -> None:
    """Where one turns out slower at reading than the other, the other reads; and is not written off for ever."""
    chosen = pace(int4=NARROW, int8=WIDE)
    assert chosen.graph(4, 16) == "int8"
    runs = 0
    while chosen.graph(4, 16) == "int8":
        chosen.took("int8", 4, 16, 4 * WIDE.prefill.at(20))
        runs += 1
    assert 1 < runs < 10
    assert chosen.graph(0, 128) == chosen.graph(8, 0) == "int8"  # chunks alone and answers alone are other things
    for _ in range(200):
        chosen.took("int4", 4, 16, NARROW.prefill.at(20))
    assert chosen.graph(4, 16) == "int8"


def test_measurements_are_kept_for_the_same_graphs_on_the_same_machine(tmp_path: Path) -> None:
    """What is kept comes back; other graphs or threads have measurements of their own."""
    kept = Measurements([tmp_path / "bundle"], {"graphs": {"int4": "a"}, "threads": 2})
    assert kept.load() is None
    kept.keep({"int4": NARROW, "int8": WIDE})
    again = Measurements([tmp_path / "bundle"], {"threads": 2, "graphs": {"int4": "a"}})
    assert again.load() == {"int4": NARROW, "int8": WIDE}
    assert Measurements([tmp_path / "bundle"], {"graphs": {"int4": "b"}, "threads": 2}).load() is None
    assert len(list((tmp_path / "bundle").iterdir())) == 1


def test_measurements_go_elsewhere_where_the_bundle_cannot_be_written(tmp_path: Path) -> None:
    """To the next folder, else nowhere, which is no failure."""
    blocked = tmp_path / "file"
    blocked.write_text("")
    kept = Measurements([blocked / "measured", tmp_path / "cache"], {})
    kept.keep({"int4": NARROW})
    assert kept.load() == {"int4": NARROW}
    nowhere = Measurements([blocked / "measured"], {})
    nowhere.keep({"int4": NARROW})
    assert nowhere.load() is None


def test_measurements_that_are_damaged_are_made_again(tmp_path: Path) -> None:
    """Half a file is no measurement."""
    kept = Measurements([tmp_path], {})
    kept.keep({"int4": NARROW})
    (file,) = tmp_path.iterdir()
    file.write_text(file.read_text()[:20])
    assert kept.load() is None


def test_all_slots_are_measured() -> None:
    """Powers of two, and the widest step there can be."""
    assert [widths(n) for n in (1, 2, 6, 8)] == [(1,), (1, 2), (1, 2, 4, 6), (1, 2, 4, 8)]
