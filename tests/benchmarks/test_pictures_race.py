"""The race over pictures, with peers that have no engine, and with our own."""

from __future__ import annotations

import asyncio
import base64
import io
import itertools
import json
import sys
import tomllib
from pathlib import Path
from typing import Any

import av
import pytest
from PIL import Image

from benchmarks.errors import BenchError
from benchmarks.peers import llama_server_peer, pictures
from benchmarks.peers.pictures import PictureRace
from benchmarks.peers.process import ROOT
from benchmarks.peers.protocol import Question
from benchmarks.peers.record import Record
from benchmarks.peers.server import ServedModel, free_port
from benchmarks.peers.turns import Part, Results, run
from serving.bundle import Bundle
from tests.benchmarks.test_peers import entrant

ONE_PICTURE, CLIP, ALBUM, CROWD, SECOND = HEATS = (
    "64 x 64",
    "clip of 1 s, 64 x 64",
    "2 pictures, 32 x 32",
    "2 at once, 32 x 32, 3 tokens each",
    "second question, 32 x 32",
)


def small(*peers: dict[str, Any], **more: Any) -> PictureRace:
    """A race that takes no time."""
    heats = {
        "sizes": [64],
        "clips": [{"seconds": 1, "edge": 64, "fps": 4}],
        "albums": [{"pictures": 2, "edge": 32}],
        "crowds": [{"streams": 2, "edge": 32, "new": 3}],
        "seen": [32],
    }
    return PictureRace.model_validate({"peers": peers, "threads": 1, "repeats": 2, "seconds": 120, **heats, **more})


def raced(given: PictureRace) -> Results:
    """All of it."""
    return asyncio.run(run(Part(given), Record(given.plan), lambda _: None))


def files(question: dict[str, Any] | None) -> list[bytes]:
    """The media of a question to a peer."""
    asked = question.get("questions", []) if question else []
    return [base64.b64decode(one) for each in asked for one in (*each["pictures"], *filter(None, [each.get("clip")]))]


def test_peers_are_raced_over_pictures() -> None:
    """Each has seconds for everything, in two turns, under the tokens that media of these sizes take."""
    given = small(entrant("one"), entrant("two"))
    results = raced(given)
    assert [(one.heat, one.peer) for one in results.results] == list(itertools.product(HEATS, ("one", "two")))
    assert [one.seconds.count for one in results.results if one.seconds] == [2] * 10
    assert {one.heat: one.tokens_per_second is not None for one in results.results} == {
        heat: heat == CROWD for heat in HEATS
    }
    seconds, prompts = pictures.tables(given, results)
    assert seconds.head == ["", "one", "two"]
    assert [row[0] for row in seconds.rows] == list(HEATS)
    assert [row[1] for row in prompts.rows] == [4, 8, 2, 2, 1]
    assert results.versions["one"]["opened"] == "1 320 2"


def test_media_are_new_in_each_turn_and_the_same_for_all() -> None:
    """No file is shown twice, not even for warming up, and each has its size and its length."""
    given = small(entrant("one"))
    warm = [file for question in given.warm_up() for file in files(question)]
    shown = [
        [file for heat in given.heats(turn) for question in (heat.before, heat.question) for file in files(question)]
        for turn in range(2)
    ]
    every = [*warm, *shown[0], *shown[1]]
    assert len(set(every)) == len(every) == 4 + 2 * 7
    assert shown[0] == [
        file for heat in given.heats(0) for question in (heat.before, heat.question) for file in files(question)
    ]
    picture, clip, *others = shown[0]
    assert [Image.open(io.BytesIO(file)).size for file in (picture, *others)] == [(64, 64)] + [(32, 32)] * 5
    with av.open(io.BytesIO(clip)) as file:
        frames = list(file.decode(video=0))
    assert (frames[0].width, frames[0].height, len(frames)) == (64, 64, 12)
    assert frames[0].to_ndarray(format="rgb24").tobytes() != frames[-1].to_ndarray(format="rgb24").tobytes()


def test_what_a_peer_cannot_do_is_in_the_table() -> None:
    """A dash and its reason stand where seconds would; the peer has its other heats."""
    given = small(entrant("sees"), entrant("p", "blind"), entrant("q", "forgets"))
    seconds, prompts, notes = pictures.tables(given, raced(given))
    shown = {row[0]: list(row[1:]) for row in seconds.rows}
    assert [cell == "\N{EN DASH}" for cell in shown[CLIP]] == [False, True, False]
    assert [cell == "\N{EN DASH}" for cell in shown[SECOND]] == [False, False, True]
    assert all(isinstance(cell, float) for heat in (ONE_PICTURE, ALBUM, CROWD) for cell in shown[heat])
    assert notes.rows == [[CLIP, "p", "it takes no video"], [SECOND, "q", "it has no conversations"]]
    assert "it takes no video" in notes.text
    assert {row[0]: row[3] for row in prompts.rows}[CLIP] is None


def test_a_picture_that_is_made_smaller_or_larger_is_told() -> None:
    """The tokens of the prompt say so: a limit of the engine's own would make it look fast."""
    given = small(entrant("p", "near-sighted"), sizes=[1024, 1056], clips=[], albums=[], crowds=[], seen=[64])
    *_, notes = pictures.tables(given, raced(given))
    assert notes.rows == [
        ["1024 x 1024", "p", "it made the media smaller"],
        ["1056 x 1056", "p", "it made the media smaller"],
        ["second question, 64 x 64", "p", "it made the media larger"],
    ]


def test_fewer_tokens_than_asked_are_an_error() -> None:
    """Also of questions at the same time."""
    with pytest.raises(BenchError, match="p generated 5 tokens of 6"):
        raced(small(entrant("p", "lazy")))


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ("sizes = [100]", r"sizes\.0: Input should be a multiple of 32"),
        ("sizes = [0]", r"sizes\.0: Input should be greater than or equal to 32"),
        ("[[clips]]\nedge = 64\nseconds = 0", r"clips\.0\.seconds: Input should be greater than 0"),
        ("[[crowds]]\nstreams = 2\nedge = 64", r"crowds\.0\.new: Field required"),
        ("prefill = [8]", "prefill: Extra inputs are not permitted"),
    ],
)
def test_a_file_that_is_no_race_over_pictures(
    tmp_path: Path, more: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sentence that names the file and the field, and exit code 1."""
    file = tmp_path / "race.toml"
    peer = f"\n[[peers]]\nname = 'p'\npython = {json.dumps(sys.executable)}\nmodule = 'm'\nmodel = 'm'\n"
    file.write_text(f"threads = 1\n{more}\n{peer}")
    assert pictures.main([str(file)]) == 1
    assert str(file) in capsys.readouterr().err
    with pytest.raises(BenchError, match=says):
        PictureRace.load(file)


def test_the_example_is_a_race_of_peers_that_exist() -> None:
    """The file that people copy is accepted, and each module in it is one of ours."""
    example = ROOT / "benchmarks" / "peers" / "pictures.example.toml"
    given = PictureRace.model_validate(tomllib.loads(example.read_text()))
    assert len(given.peers) == 4
    for peer in given.peers:
        assert (ROOT / f"{peer.module.replace('.', '/')}.py").is_file()


def test_our_own_system_can_be_raced(tiny: Bundle) -> None:
    """`triptych up` on a bundle sees pictures and a clip, answers two at once and knows a picture that it has seen."""
    ours = {"module": "benchmarks.peers.triptych_pictures_peer", "model": str(tiny.root)}
    given = small(entrant("ours") | ours, repeats=1)
    results = raced(given)
    assert [one.heat for one in results.results if one.seconds] == list(HEATS)
    assert [one.cannot for one in results.results] == [None] * 5
    assert {"triptych", "torch", "onnxruntime"} == set(results.versions["ours"])


def test_a_server_that_does_not_start() -> None:
    """Its end is told, not waited for."""
    command = [sys.executable, "-c", "raise SystemExit(3)"]
    with pytest.raises(RuntimeError, match="the server ended with code 3"):
        ServedModel(command, free_port(), health="/", versions={}, environment={}, fields={}, streams=1)


@pytest.mark.parametrize(
    ("question", "fps", "programs", "why"),
    [
        (Question("?", (b"jpeg",)), "4", (), None),
        (Question("?", clip=b"mp4", fps=2.0), "2", ("ffmpeg", "ffprobe"), None),
        (Question("?", clip=b"mp4", fps=4.0), None, ("ffmpeg", "ffprobe"), None),
        (Question("?", clip=b"mp4", fps=2.0), "2", (), "it needs ffmpeg and ffprobe for a video"),
        (Question("?", clip=b"mp4", fps=2.0), "2", ("ffmpeg",), "it needs ffmpeg and ffprobe for a video"),
        (Question("?", clip=b"mp4", fps=2.5), "2", ("ffmpeg", "ffprobe"), "it samples 2 frames per second, not 2.5"),
        (Question("?", clip=b"mp4", fps=2.0), None, ("ffmpeg", "ffprobe"), "it samples 4 frames per second, not 2"),
    ],
)
def test_what_llama_cpp_cannot_be_asked(
    tmp_path: Path, question: Question, fps: str | None, programs: tuple[str, ...], why: str | None
) -> None:
    """Clips without the programs that decode them, or at another rate than the server's; anything else it can."""
    for name in programs:
        (tmp_path / name).touch(mode=0o755)
    rate = {} if fps is None else {"LLAMA_ARG_VIDEO_FPS": fps}
    for where in ("PATH", "LLAMA_ARG_VIDEO_FFMPEG_DIR"):
        environment = {"PATH": str(tmp_path / "empty"), where: str(tmp_path), **rate}
        assert llama_server_peer.refusal(question, environment) == why


def test_the_version_of_llama_cpp() -> None:
    """The version is found among other lines; an output without one raises an error."""
    told = "load_backend: loaded CPU\nversion: 0.5.0-dev (build 1, commit 0c1e570)\nbuilt with GNU 12.2.0 for Linux\n"
    assert llama_server_peer.version(told) == "0.5.0-dev (build 1, commit 0c1e570)"
    with pytest.raises(ValueError, match="prints no version: 'usage: something'"):
        llama_server_peer.version("usage: something\n")


def test_llama_cpp_without_its_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """The race ends with the variable that is missing."""
    monkeypatch.delenv("LLAMA_SERVER", raising=False)
    llama = entrant("llama") | {"module": "benchmarks.peers.llama_server_peer", "model": "none.gguf"}
    with pytest.raises(BenchError, match="llama failed: RuntimeError: LLAMA_SERVER must name the program llama-server"):
        raced(small(llama))
