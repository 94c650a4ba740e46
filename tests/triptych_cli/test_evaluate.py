"""`triptych evaluate`: its flags, what it prints, and how it ends."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.evaluation import drawn
from tests.triptych.scripted import SECONDS, Context, Scripted, answered, playing, wait
from tests.triptych_cli.terminal import on_terminal
from triptych.bundles import demo_bundle
from triptych_cli import main as cli
from vlm.v1 import chat_pb2, gateway_pb2


@pytest.fixture(scope="module")
def bundle() -> str:
    """The demo's."""
    return str(demo_bundle())


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Four questions, two of each category."""
    folder = tmp_path_factory.mktemp("questions")
    return str(drawn.write(folder / "q.jsonl", [*drawn.colours(folder, 2), *drawn.signs(folder, 2)]))


@pytest.fixture
def gateway() -> Iterator[Scripted]:
    """It answers B to everything."""
    with playing(lambda request, context: answered("B")) as scripted:
        scripted.models = ("triptych-demo",)
        yield scripted


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "BUNDLE"),
        (("b",), "--reference"),
        (("b", "--questions", "q", "--phase", "decode"), "--phase"),
        (("b", "--questions", "q", "--encoder", "int4"), "--encoder"),
        (("b", "--reference", "r", "--address", "a"), "--address"),
        (("b", "--questions", "q", "--address", "a", "--encoder", "int8"), "--encoder"),
        (("b", "--questions", "q", "--limit", "0"), "--limit"),
    ],
)
def test_wrong_usage(words: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One line that names the flag, and exit code 2."""
    with pytest.raises(SystemExit) as ended:
        cli.main(["evaluate", *words])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1


def test_failures_are_one_line(bundle: str, questions: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Bad lines come before anything is opened; then the bundle, the reference and the gateway, in that order."""
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"id": "1"}\n')
    for words, says in (
        (["nowhere", "--questions", str(bad)], "bad.jsonl has one bad line: line 1: choices"),
        (["nowhere", "--questions", questions], "There is no bundle at nowhere"),
        ([bundle, "--questions", questions, "--reference", "nowhere"], "There is no directory nowhere"),
        ([bundle, "--questions", questions, "--address", "127.0.0.1:1"], "no gateway answers at 127.0.0.1:1"),
    ):
        assert cli.main(["evaluate", *words]) == 1
        said = capsys.readouterr()
        assert says in said.err
        assert (said.err.count("\n"), said.out) == (1, "")


def test_a_table_and_json(bundle: str, questions: str, gateway: Scripted, capsys: pytest.CaptureFixture[str]) -> None:
    """People get a row for each category, programs every answer; neither gets anything else."""
    words = ["evaluate", bundle, "--questions", questions, "--address", gateway.address]
    assert cli.main(words) == 0
    said = capsys.readouterr()
    assert said.err == ""
    title, head, _, *rows = said.out.splitlines()
    assert title == "Accuracy (0 without a letter, 0 cut off, 0 refused)"
    assert head.split() == ["questions", "asked", "accuracy", "95%", "interval"]
    assert [row.split()[:3] for row in rows] == [["colour", "2", "50.0%"], ["sign", "2", "0.0%"], ["all", "4", "25.0%"]]
    assert cli.main([*words, "--json", "--limit", "3", "--max-tokens", "9"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["format"], document["model"], document["divergence"]) == (1, "triptych-demo", None)
    (accuracy,) = document["accuracy"]
    assert accuracy["total"]["questions"] == 3
    assert accuracy["items"][1] == {
        "id": "colour-1",
        "category": "colour",
        "metric": "choice",
        "score": 1.0,
        "answer": "B",
        "read": "B",
        "expected": "B",
        "finish_reason": "stop",
        "error": None,
    }
    assert gateway.chats[-1].generation.max_tokens == 9


def test_a_reference_and_questions(questions: str, gateway: Scripted, capsys: pytest.CaptureFixture[str]) -> None:
    """With both, the next token is compared on questions of the file, spread over it, before they are asked."""
    words = ["evaluate", str(demo_bundle("fp32")), "--reference", str(demo_bundle("fp32")), "--questions", questions]
    words += ["--compare", "2", "--phase", "prefill", "--encoder", "float32", "--address", gateway.address]
    assert cli.main(words) == 0
    said = capsys.readouterr()
    assert said.err == ""
    first, second = said.out.split("\n\n")
    title, head, _, *rows = first.splitlines()
    assert title.startswith("Next token, against the float32 graph of ")
    assert title.endswith(", on 2 prompts")
    assert head.split() == ["graph", "encoder", "prefill", "KL", "largest", "same", "token", "positions"]
    (graph, encoder, mean, largest, same, positions), *others = (row.split() for row in rows)
    assert (graph, encoder, same, positions, others) == ("fp32", "float32", "100.0%", "2", [])
    assert max(float(mean), float(largest)) < 1e-9
    assert second.startswith("Accuracy ")
    assert len(gateway.chats) == 4


def test_the_bar_counts_the_questions(bundle: str, questions: str, gateway: Scripted) -> None:
    """On a terminal the answers are counted while they come; nothing of it is left, and stdout has the table alone."""
    words = ("evaluate", bundle, "--questions", questions, "--address", gateway.address)
    with on_terminal(*words, columns=100, pipe_stdout=True) as seen:
        assert seen.end() == 0
        assert seen.process.stdout is not None
        assert seen.process.stdout.read().startswith("Accuracy ")
    for what in ("pictures", "questions"):
        assert f"{what} 3/4 75% [###############.....]" in seen.written
    assert seen.screen() == []


def test_ctrl_c_ends_it(bundle: str, questions: str) -> None:
    """An interrupt in the midst of an answer is one line, and the answer is given up."""
    asked, given_up = threading.Event(), threading.Event()

    def play(request: gateway_pb2.ChatRequest, context: Context) -> Iterator[chat_pb2.ChatEvent]:
        context.add_callback(given_up.set)
        asked.set()
        wait(given_up)
        yield from answered()

    with playing(play) as gateway:
        gateway.models = ("triptych-demo",)
        command = [sys.executable, "-m", "triptych_cli", "evaluate", bundle, "--questions", questions]
        process = subprocess.Popen(
            [*command, "--address", gateway.address], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            wait(asked)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=SECONDS)
        finally:
            process.kill()
            process.wait()
        wait(given_up)
    assert (process.returncode, out, err) == (130, "", "triptych: interrupted\n")
