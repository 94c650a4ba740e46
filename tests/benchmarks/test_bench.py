"""`triptych bench`, run for real on a model of no use."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from benchmarks import vision
from serving.bundle import Bundle
from tests.system import triptych_system
from triptych_cli import main as cli
from triptych_cli.errors import CommandError

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'protos'}",
    "DECODER_THREADS": "1",
    "DECODER_LOG_LEVEL": "warning",
}
SMALL = (
    *("--prompts", "16,32", "--streams", "1,2", "--prompt-tokens", "8", "--new-tokens", "8"),
    *("--arrivals", "3", "--arrival-seconds", "0.01", "--stall-prompt", "32", "--repeats", "2"),
)


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `triptych bench` to its end."""
    command = [sys.executable, "-m", "triptych_cli", "bench", *words]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, env={**ENVIRONMENT, **environment}
    )


def here(*words: str) -> None:
    """Run `triptych bench` in this process."""
    options = cli._parser().parse_args(["bench", *words])
    options.command(options)


def test_the_decoder_is_benched(tiny: Bundle, tmp_path: Path) -> None:
    """One JSON object on stdout and nothing else, with the engine, the plan and all results; and a picture."""
    drawn = tmp_path / "decoder.png"
    done = run("decoder", "--bundle", str(tiny.root), "--json", "--picture", str(drawn), *SMALL)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["bench"] == "decoder"
    assert document["subject"].items() >= {"model": tiny.model.id, "precision": "int4", "threads": 1}.items()
    assert document["plan"]["prompts"] == [16, 32]
    assert document["results"].keys() == {"prefill", "streams", "mixed", "stall"}
    assert [result["streams"] for result in document["results"]["streams"]] == [1, 2]
    assert drawn.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "environment", "says"),
    [
        (("--prompts", "99999"), {}, "needs a context of 100000 tokens"),
        ((), {"DECODER_THREADS": "-1"}, "DECODER_THREADS: Input should be greater"),
    ],
)
def test_what_cannot_be_benched_says_why(
    tiny: Bundle, words: tuple[str, ...], environment: dict[str, str], says: str
) -> None:
    """One line, and exit code 1."""
    done = run("decoder", "--bundle", str(tiny.root), *words, **environment)
    assert done.returncode == 1
    assert says in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.fixture(scope="module")
def address(tiny: Bundle) -> Iterator[str]:
    """A running gateway."""
    with triptych_system(tiny.root, threads=1) as found:
        yield found


def test_the_system_is_benched(address: str, tiny: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    """Through a running gateway: every size, every number of conversations, and a second question without encoding."""
    here(
        *("system", "--address", address, "--json", "--sizes", "64,256", "--streams", "1,2"),
        *("--stream-size", "64", "--new-tokens", "4", "--repeats", "2"),
    )
    document = json.loads(capsys.readouterr().out.splitlines()[-1])  # above it the servers of this process log
    assert document["subject"] == {"model": tiny.model.id, "gateway": address}
    results = document["results"]
    assert [size["edge"] for size in results["by_size"]] == [64, 256]
    assert all(size["first_token"]["vision_seconds"] > 0 for size in results["by_size"])
    assert [result["streams"] for result in results["conversations"]] == [1, 2]
    again = results["second_question"]
    assert again["edge"] == 256
    assert again["first"]["vision_seconds"] > 0
    assert again["second"]["vision_seconds"] == 0
    assert again["second"]["prompt_tokens"] > again["first"]["prompt_tokens"]


def test_the_system_is_shown_as_tables(address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without `--json` the same is told in tables, and drawn where a picture is asked for."""
    drawn = tmp_path / "system.svg"
    here(
        *("system", "--address", address, "--sizes", "64", "--streams", "1", "--stream-size", "64"),
        *("--new-tokens", "2", "--repeats", "1", "--picture", str(drawn)),
    )
    shown = capsys.readouterr().out
    for title in ("First question about a picture", "Concurrent conversations", "Two questions about one picture"):
        assert title in shown
    assert drawn.exists()


def test_the_command_line_does_without_benchmarks() -> None:
    """Where `benchmarks` is not installed, as in an image, every other command is there."""
    program = (
        "import sys; sys.modules['benchmarks'] = None; from triptych_cli.main import main; main(['export', '--help'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False, env=ENVIRONMENT
    )
    assert (done.returncode, done.stderr) == (0, "")


@dataclass(frozen=True)
class _Encoded:
    edge: int
    patches_per_second: float


def test_vision_is_benched_by_its_own_module(
    tiny: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`benchmarks.vision.run` is given the bundle and what was asked for; its dataclasses become table and JSON."""
    asked: list[tuple[Bundle, dict[str, Any]]] = []

    def measure(bundle: Bundle, **options: Any) -> list[_Encoded]:
        asked.append((bundle, options))
        return [_Encoded(224, 300.0)]

    monkeypatch.setattr(vision, "run", measure)
    here("vision", "--bundle", str(tiny.root), "--repeats", "2", "--json")
    assert json.loads(capsys.readouterr().out)["results"] == [{"edge": 224, "patches_per_second": 300.0}]
    here("vision", "--bundle", str(tiny.root))
    assert "patches per second" in capsys.readouterr().out
    assert [options for _, options in asked] == [{"repeats": 2}, {}]
    assert {bundle.root for bundle, _ in asked} == {tiny.root}


def test_the_encoder_is_benched(tiny: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    """Each case is measured on both sides, which give the same features."""
    here("vision", "--bundle", str(tiny.root), "--repeats", "1", "--json")
    results = json.loads(capsys.readouterr().out)["results"]
    assert [(case["images"], case["patches"]) for case in results] == [
        (case.images, case.images * case.grid[0] * case.grid[1]) for case in vision.CASES
    ]
    assert all(case["transformers"] > 0 and case["triptych"] > 0 and case["difference"] < 1e-3 for case in results)


def test_a_picture_without_matplotlib_is_refused_at_once(tiny: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not after minutes of measuring."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(CommandError, match="matplotlib"):
        here("decoder", "--bundle", str(tiny.root), "--picture", "a.png")


@pytest.mark.parametrize("words", [("decoder", "--streams", "0"), ("decoder", "--prompts", "1,x"), ("everything",), ()])
def test_wrong_usage_is_exit_code_2(words: tuple[str, ...]) -> None:
    """What argparse can see is wrong usage."""
    with pytest.raises(SystemExit) as caught:
        here(*words)
    assert caught.value.code == 2


def test_the_gateway_is_benched() -> None:
    """Every door, with one process and two, has a throughput, and its CPU time was counted."""
    short = ("--clients", "2", "--seconds", "0.2", "--repeats", "1", "--decoders", "2", "--new-tokens", "3")
    done = run("gateway", "--json", "--processes", "1,2", *short)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)["results"]
    doors = ["gRPC", "HTTP stream", "HTTP whole"]
    assert [(result["processes"], result["door"]) for result in results] == [
        (n, door) for n in (1, 2) for door in doors
    ]
    for result in results:
        assert result["tokens_per_second"] == pytest.approx(3 * result["requests_per_second"])
        assert result["requests_per_cpu_second"] > 0
        assert result["cores"] > 0
