"""The race over text, with peers that have no engine, and with our own."""

from __future__ import annotations

import asyncio
import json
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3VLForConditionalGeneration

from benchmarks.errors import BenchError
from benchmarks.peers import race, text_twin
from benchmarks.peers.process import ROOT
from benchmarks.peers.race import TextRace
from benchmarks.peers.record import Record
from benchmarks.peers.turns import Part, Results, run
from serving.bundle import Bundle
from tests.checkpoints import make_checkpoint


def entrant(name: str, model: str = "works", **more: Any) -> dict[str, Any]:
    """A peer of the race that has no engine."""
    return {"name": name, "python": sys.executable, "module": "tests.benchmarks.trivial_peer", "model": model, **more}


def small(*peers: dict[str, Any], **more: Any) -> TextRace:
    """A race that takes no time."""
    runs = [{"streams": 1, "prompt": 4, "new": 3}, {"streams": 2, "prompt": 4, "new": 5}]
    return TextRace.model_validate(
        {"peers": peers, "threads": 1, "repeats": 2, "prefill": [8], "runs": runs, "seconds": 60, **more}
    )


def raced(given: TextRace, told: list[str] | None = None) -> Results:
    """All of it."""
    return asyncio.run(run(Part(given), Record(given.plan), (told if told is not None else []).append))


def test_peers_are_raced_in_turns() -> None:
    """Everyone has each turn, the order changes, and every peer has a result for everything that was asked."""
    told: list[str] = []
    given = small(entrant("one", environment={"TOLD": "yes"}), entrant("two"))
    results = raced(given, told)
    assert told == ["turn 1 of 2: one", "turn 1 of 2: two", "turn 2 of 2: two", "turn 2 of 2: one"]
    assert results.versions["one"] == {"trivial": "1", "opened": "1 9 2", "told": "yes"}
    assert results.versions["two"]["told"] == ""
    names = ["prefill 8", "1 x (4 + 3)", "2 x (4 + 5)"]
    assert [(result.heat, result.peer) for result in results.results] == [
        (name, peer) for name in names for peer in ("one", "two")
    ]
    assert [result.seconds.count for result in results.results if result.seconds] == [2] * 6
    assert all(result.tokens_per_second for result in results.results)
    (shown,) = race.tables(given, results)
    assert shown.head == ["", "one", "two"]
    assert [row[0] for row in shown.rows] == names


def test_all_peers_are_asked_the_same_and_never_twice() -> None:
    """The prompts of a turn are the same whoever is asked, those of another turn are others, all of ordinary tokens."""
    given = small(entrant("one"), tokens=(1000, 100_000))
    first = [heat.question for heat in given.heats(0)]
    assert first == [heat.question for heat in given.heats(0)]
    second = [heat.question for heat in given.heats(1)]
    asked = [
        tuple(prompt) for question in (*first, *second) for prompt in question.get("prompts", [question.get("prompt")])
    ]
    assert len(set(asked)) == len(asked) == 8
    assert all(1000 <= token < 100_000 for prompt in asked for token in prompt)


@pytest.mark.parametrize(
    ("peer", "says"),
    [
        (entrant("p", "cannot load"), "p failed: ValueError: no such model"),
        (entrant("p", "fails"), "p failed: RuntimeError: out of order"),
        (entrant("p", "dies"), "p ended with code 7"),
        (entrant("p", "lazy"), "p generated 9 tokens of 10"),
        (entrant("p") | {"module": "tests.benchmarks.no_such_module"}, "p ended with code 1"),
        (entrant("p") | {"python": "/no/such/python"}, "p cannot be started with /no/such/python"),
    ],
)
def test_a_peer_that_fails_is_named(peer: dict[str, Any], says: str) -> None:
    """Whether it cannot start or load, fails, dies, or does less than it was asked."""
    with pytest.raises(BenchError, match=says):
        raced(small(peer))


def test_a_race_is_run_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From a TOML file to one JSON object, or to a table."""
    file = tmp_path / "race.toml"
    python = json.dumps(sys.executable)
    file.write_text(
        f'threads = 1\nrepeats = 1\nprefill = [4]\nruns = []\n[[peers]]\nname = "one"\npython = {python}\n'
        'module = "tests.benchmarks.trivial_peer"\nmodel = "works"\n'
    )
    assert race.main([str(file), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["bench"], document["subject"]) == ("peers", {"one": "works"})
    assert document["plan"]["prefill"] == [4]
    assert [result["heat"] for result in document["results"]["results"]] == ["prefill 4"]
    assert race.main([str(file)]) == 0
    assert "Tokens per second, medians" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "cannot be read"),
        ("threads = ", "is not TOML"),
        ("threads = 1\npeers = []\n", "peers: List should have at least 1 item"),
        ("threads = 0\n", "threads|peers"),
    ],
)
def test_a_file_that_is_no_race(
    tmp_path: Path, text: str | None, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sentence that names the file, and exit code 1."""
    file = tmp_path / "race.toml"
    if text is not None:
        file.write_text(text)
    assert race.main([str(file)]) == 1
    with pytest.raises(BenchError, match=says):
        TextRace.load(file)
    assert str(file) in capsys.readouterr().err


def test_the_example_is_a_race_of_peers_that_exist() -> None:
    """The file that people copy is accepted, and each module in it is one of ours."""
    example = ROOT / "benchmarks" / "peers" / "race.example.toml"
    given = TextRace.model_validate(tomllib.loads(example.read_text()))
    assert len(given.peers) == 5
    for peer in given.peers:
        assert (ROOT / f"{peer.module.replace('.', '/')}.py").is_file()


def test_our_own_engine_and_transformers_can_be_raced(tiny: Bundle, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Both peers that need no other environment load, read and write as many tokens as they are asked for."""
    twin = text_twin.make(tiny_checkpoint, tmp_path / "twin")
    ours = {"module": "benchmarks.peers.triptych_peer", "model": str(tiny.root)}
    theirs = {"module": "benchmarks.peers.transformers_peer", "model": str(twin)}
    given = small(entrant("ours") | ours, entrant("theirs") | theirs, repeats=1, tokens=(0, 250))
    results = raced(given)
    assert len(results.results) == 6
    assert {"triptych", "transformers"} <= {name for versions in results.versions.values() for name in versions}


@pytest.mark.parametrize("dialect", ["v5", "v4"])
@pytest.mark.parametrize("shape", [{}, {"tie": False, "attention_bias": True, "shard_size": "100KB"}])
def test_a_text_twin_is_the_same_function(tmp_path: Path, dialect: Any, shape: dict[str, Any]) -> None:
    """Its logits are those of the language model of the checkpoint, whichever way this was written."""
    source = make_checkpoint(tmp_path / "source", dialect=dialect, **shape)
    twin = text_twin.make(source, tmp_path / "twin")
    ids = torch.tensor([[5, 40, 77, 3, 120, 9]])
    with torch.inference_mode():
        expected = Qwen3VLForConditionalGeneration.from_pretrained(source, dtype=torch.float32)(input_ids=ids).logits
        got = AutoModelForCausalLM.from_pretrained(twin, dtype=torch.float32)(input_ids=ids).logits
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_what_has_no_twin(tmp_path: Path, tiny_checkpoint: Path) -> None:
    """A directory that is there, or is no such checkpoint, is refused in a sentence."""
    with pytest.raises(BenchError, match="exists"):
        text_twin.make(tiny_checkpoint, tmp_path)
    with pytest.raises(BenchError, match="is not a Qwen3-VL checkpoint"):
        text_twin.make(tmp_path, tmp_path / "twin")
