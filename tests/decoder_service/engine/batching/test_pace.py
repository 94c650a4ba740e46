"""Choosing by speeds, and keeping what was measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from decoder_service.engine.batching.calibration import widths
from decoder_service.engine.batching.pace import READING_STEP, Curve, Measurements, Pace, Speed

# About the 2B model's on two cores: answers are computed from 4 bits, prompts from 8.
SPEED = Speed(Curve((1, 4, 8), (0.030, 0.035, 0.041)), Curve((2, 16, 64, 128), (0.045, 0.075, 0.160, 0.280)))
# One graph for both.
ALONE = Speed(Curve((1, 4, 8), (0.030, 0.035, 0.041)), Curve((2, 8, 32, 128), (0.032, 0.041, 0.12, 0.45)))


def two_graphs(speed: Speed = SPEED, *, parts: int = 15) -> Pace:
    """A pace with the default settings, where prompts have a graph of their own, in parts."""
    return Pace(speed, chunk_tokens=512, stall=0.5, together=False, parts=parts)


def one_graph(speed: Speed = ALONE, *, stall: float = 0.5) -> Pace:
    """A pace where one graph does both."""
    return Pace(speed, chunk_tokens=512, stall=stall)


def room(pace: Pace, answering: int, prompts: int = 1) -> int:
    """What one graph reads beside so many answers, or with nobody answering."""
    pace.begin(answering, prompts)
    return pace.room(answering)


def test_curves_are_lines() -> None:
    """Between what was measured and beyond it; below it the least."""
    curve = Curve((1, 3), (1.0, 2.0))
    assert [curve.at(n) for n in (1, 2, 3, 5)] == pytest.approx([1.0, 1.5, 2.0, 3.0])
    assert Curve((8, 16), (1.0, 2.0)).at(2) == 1.0
    assert Curve((4,), (1.0,)).at(8) == 2.0


@pytest.mark.parametrize("answering", [1, 4, 8])
def test_answers_wait_no_longer_than_the_stall(answering: int) -> None:
    """A run that also reads takes at most `stall` of a step more, about that where it can; then the step is over."""
    chosen = one_graph(stall=1.5)
    size = room(chosen, answering)
    step, run = ALONE.decode.at(answering), ALONE.prefill.at(answering + size)
    assert run <= 2.5 * step < ALONE.prefill.at(answering + size + 1)
    chosen.take(size)
    chosen.took(answering, size, run)
    assert chosen.room() == 0
    # Negative control: a chunk that cost less leaves time for one that is alone.
    chosen.begin(answering, 5)
    chosen.take(1)
    chosen.took(answering, 1, ALONE.prefill.at(answering + 1))
    assert chosen.room() > 0


def test_each_prompt_that_could_be_read_adds_to_the_stall() -> None:
    """Up to what a step without answers may read."""
    chosen = one_graph()
    assert room(chosen, 4) < room(chosen, 4, 3) < room(chosen, 4, 10)
    seconds = ALONE.prefill.at(4 + room(chosen, 4, 1000)) - ALONE.decode.at(4)
    assert seconds <= READING_STEP < seconds + 0.01


def test_a_step_that_only_reads_is_short() -> None:
    """So that what comes or goes meanwhile does not wait long; never more than chunk_tokens, never nothing."""
    for chosen in (one_graph(), two_graphs()):
        assert SPEED.prefill.at(room(chosen, 0)) <= READING_STEP
    quick = Speed(Curve((1,), (1e-5,)), Curve((1,), (1e-6,)))
    assert room(one_graph(quick), 0) == 512
    slow = Speed(Curve((1,), (1.0,)), Curve((1,), (9.0,)))
    assert room(one_graph(slow), 0) == room(one_graph(slow), 1) == room(two_graphs(slow), 0) == 1


@pytest.mark.parametrize(("answering", "prompts"), [(1, 1), (4, 1), (8, 1), (4, 3)])
def test_parts_of_a_chunk_take_their_share(answering: int, prompts: int) -> None:
    """Reading in parts between steps slows them down by `stall` for each prompt, in the mean, and evenly."""
    chosen, step = two_graphs(), SPEED.decode.at(answering)
    read, left, size = 0.0, 0.0, 0
    shares = []
    for _ in range(400):
        chosen.begin(answering, prompts)
        before = read
        while True:
            if left <= 0:
                size = chosen.room()
                left = SPEED.prefill.at(size) if size else 0.0
            if left <= 0 or chosen.over:
                break
            part = SPEED.prefill.at(size) / 15
            chosen.spent(part)
            read, left = read + part, left - part + 1e-9
        shares.append(read - before)
    assert read == pytest.approx(400 * 0.5 * prompts * step, rel=0.05)
    assert max(shares) <= 0.5 * prompts * step + 0.25 / 15 + 1e-6


def test_a_chunk_beside_answers_is_worth_its_weights() -> None:
    """Long enough that most of its time is not the reading of weights, short enough for others to come soon."""
    chosen = two_graphs()
    chosen.begin(4, 1)
    assert 2 * SPEED.prefill.at(1) <= SPEED.prefill.at(chosen.room()) <= READING_STEP / 4
    chosen.begin(0, 1)
    assert SPEED.prefill.at(chosen.room()) > READING_STEP / 2
    # Of few parts each would be longer than what a step gives: chunks are smaller.
    few = two_graphs(parts=4)
    few.begin(4, 1)
    chosen.begin(4, 1)
    assert few.room() < chosen.room()


def test_what_took_too_long_is_missing_later() -> None:
    """A part that takes three steps' share is followed by steps that read nothing."""
    chosen = two_graphs()
    earned = 0.5 * SPEED.decode.at(4)
    over = []
    chosen.begin(4, 1)
    chosen.spent(3.5 * earned)
    for _ in range(4):
        chosen.begin(4, 1)
        over.append(chosen.over)
        assert (chosen.room() == 0) == over[-1]
    assert over == [True, True, False, False]


def test_real_steps_correct_the_measurements() -> None:
    """Chunks that take longer than measured become smaller, and steps that do let them grow; within bounds."""
    chosen = one_graph()
    alone, beside = room(chosen, 0), room(chosen, 4)

    def takes(factor: float, answers: int, tokens: int) -> None:
        for _ in range(30):
            expected = ALONE.prefill.at(answers + tokens) if tokens else ALONE.decode.at(answers)
            chosen.begin(answers, 1)
            chosen.took(answers, tokens, factor * expected)

    takes(2, 0, alone)
    assert room(chosen, 0) < alone
    assert room(chosen, 4) == beside  # only chunks were seen to be slow
    takes(2, 4, beside)
    assert abs(room(chosen, 4) - beside) <= 1  # answers alone are taken to be slower, too
    takes(1, 4, 0)
    assert room(chosen, 4) < beside - 1  # until they are seen to be as fast as measured
    takes(2, 4, 0)
    assert abs(room(chosen, 4) - beside) <= 1
    takes(1e9, 4, 0)
    assert room(chosen, 4) <= 512


def test_measurements_are_kept_for_the_same_graphs_on_the_same_machine(tmp_path: Path) -> None:
    """What is kept comes back; other graphs or threads have measurements of their own."""
    kept = Measurements([tmp_path / "bundle"], {"graphs": {"int4": "a"}, "threads": 2})
    assert kept.load() is None
    kept.keep(SPEED)
    again = Measurements([tmp_path / "bundle"], {"threads": 2, "graphs": {"int4": "a"}})
    assert again.load() == SPEED
    assert Measurements([tmp_path / "bundle"], {"graphs": {"int4": "b"}, "threads": 2}).load() is None
    assert len(list((tmp_path / "bundle").iterdir())) == 1


def test_measurements_go_elsewhere_where_the_bundle_cannot_be_written(tmp_path: Path) -> None:
    """To the next folder, else nowhere, which is no failure."""
    blocked = tmp_path / "file"
    blocked.write_text("")
    kept = Measurements([blocked / "measured", tmp_path / "cache"], {})
    kept.keep(SPEED)
    assert kept.load() == SPEED
    nowhere = Measurements([blocked / "measured"], {})
    nowhere.keep(SPEED)
    assert nowhere.load() is None


def test_measurements_that_are_damaged_are_made_again(tmp_path: Path) -> None:
    """Half a file is no measurement."""
    kept = Measurements([tmp_path], {})
    kept.keep(SPEED)
    (file,) = tmp_path.iterdir()
    file.write_text(file.read_text()[:20])
    assert kept.load() is None


def test_all_slots_are_measured() -> None:
    """Powers of two, and the widest step there can be."""
    assert [widths(n) for n in (1, 2, 6, 8)] == [(1,), (1, 2), (1, 2, 4, 6), (1, 2, 4, 8)]
