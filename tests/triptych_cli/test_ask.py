"""`triptych ask` against a gateway that plays a script: flags, the progress bar, what is left on the terminal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from decoder_service.request.admission import check_positions, check_room
from serving.errors import ServiceError, invalid
from tests.triptych.scripted import (
    SECONDS,
    Context,
    Script,
    Scripted,
    accept,
    answered,
    fail,
    image_layout,
    playing,
    video_layout,
    wait,
)
from tests.triptych_cli.terminal import on_terminal
from triptych_cli import main as cli
from vlm.v1 import chat_pb2, gateway_pb2, media_pb2

PROGRESS = (
    chat_pb2.Progress(stage=chat_pb2.STAGE_QUEUED),
    chat_pb2.Progress(stage=chat_pb2.STAGE_ENCODING, done=34, total=100),
    chat_pb2.Progress(stage=chat_pb2.STAGE_PREFILL, done=60, total=100),
)
LARGE = image_layout((4000, 3000), (1184, 864))
REMARK = "4000 x 3000 seen as 1184 x 864 (999 tokens); --detail original or --max-pixels for more"


@pytest.fixture
def picture(tmp_path: Path) -> str:
    """A file of 1.5 MB that only a gateway without eyes takes for a picture."""
    path = tmp_path / "photo.jpg"
    path.write_bytes(b"x" * 1_500_000)
    return str(path)


def _play(request: gateway_pb2.ChatRequest, context: Context) -> Iterator[chat_pb2.ChatEvent]:
    accept(context)
    yield from answered("A cat.", (LARGE,), PROGRESS if request.report_progress else ())


def _piped(*words: str, stdin: str | bytes = b"") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "triptych_cli", "ask", *words]
    given = stdin.encode() if isinstance(stdin, str) else stdin
    done = subprocess.run(command, input=given, capture_output=True, timeout=SECONDS, check=False)
    return subprocess.CompletedProcess(command, done.returncode, done.stdout.decode(), done.stderr.decode())


def test_the_bar_follows_the_request_and_is_gone_before_the_answer(picture: str) -> None:
    """Each stage is drawn while it lasts; the answer and the remark stand alone at the end."""
    gates = {name: threading.Event() for name in ("received", "accepted", "queued", "encoding", "prefill")}

    def play(request: gateway_pb2.ChatRequest, context: Context) -> Iterator[chat_pb2.ChatEvent]:
        wait(gates["received"])
        accept(context)
        wait(gates["accepted"])
        started, *progress, delta, finished = answered("A cat.", (LARGE,), PROGRESS)
        yield started
        for event, name in zip(progress, ("queued", "encoding", "prefill"), strict=True):
            yield event
            wait(gates[name])
        yield delta
        yield finished

    with playing(play) as gateway, on_terminal("ask", "x", "--image", picture, "--address", gateway.address) as seen:
        for shown, gate in (
            ("uploading 1.5 MB", "received"),
            ("preparing", "accepted"),
            ("queued", "queued"),
            ("encoding 34% [######..............]", "encoding"),
            ("prefill 60% [############........]", "prefill"),
        ):
            seen.until(shown)
            assert len(seen.screen()) == 1
            gates[gate].set()
        assert seen.end() == 0
    assert "".join(seen.screen()) == f"A cat.{picture}: {REMARK}"
    assert seen.written.endswith(f"\r\x1b[KA cat.\r\n\x1b[2m{picture}: {REMARK}\x1b[0m\r\n")


def test_stdout_has_the_answer_alone(picture: str) -> None:
    """With stdout in a pipe the bar is drawn on the terminal of stderr, and not a byte of it is in the pipe."""
    words = ("ask", "x", "--image", picture, "--max-pixels", "9", "--address")
    with playing(_play) as gateway, on_terminal(*words, gateway.address, pipe_stdout=True) as seen:
        assert seen.end() == 0
        assert seen.process.stdout is not None
        assert seen.process.stdout.read() == "A cat.\n"
        assert "encoding 34%" in seen.written
        assert seen.screen() == []


def test_no_bar_is_drawn_off_a_terminal(picture: str) -> None:
    """With stderr in a pipe nothing is written there, nothing is remarked, and no progress is asked for."""
    with playing(_play) as gateway:
        asked = _piped("x", "--image", picture, "--address", gateway.address)
        assert (asked.returncode, asked.stdout, asked.stderr) == (0, "A cat.\n", "")
        assert not gateway.chats[0].report_progress


def test_no_bar_is_drawn_where_a_line_cannot_be_erased(picture: str) -> None:
    """A terminal that calls itself dumb gets the answer alone."""
    words = ("ask", "x", "--image", picture, "--address")
    with playing(_play) as gateway, on_terminal(*words, gateway.address, term="dumb") as seen:
        assert seen.end() == 0
    assert seen.written == "A cat.\r\n"


def test_json_has_the_layouts_and_no_bar(picture: str) -> None:
    """One object with what the media became, on a terminal, too."""
    words = ("ask", "x", "--image", picture, "--json", "--address")
    with playing(_play) as gateway, on_terminal(*words, gateway.address) as seen:
        assert seen.end() == 0
    answer = json.loads(seen.written)
    fields = {"text", "reasoning", "token_ids", "prompt_token_ids", "finish_reason", "usage", "timings", "media"}
    assert set(answer) == {*fields, "finish_limit"}
    assert answer["media"] == [
        {
            "kind": "image",
            "size_given": [4000, 3000],
            "size_used": [1184, 864],
            "grid": [1, 54, 74],
            "tokens": 999,
            "frame_times": [],
            "timestamps": [],
        }
    ]


def test_the_bar_is_gone_after_an_error(picture: str) -> None:
    """The error's one line is all that is left."""

    def fail(request: gateway_pb2.ChatRequest, context: Context) -> Iterator[chat_pb2.ChatEvent]:
        accept(context)
        yield chat_pb2.ChatEvent(progress=PROGRESS[1])
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too large")

    words = ("ask", "x", "--image", picture, "--address")
    with playing(fail) as gateway, on_terminal(*words, gateway.address) as seen:
        assert seen.end() == 1
    assert "encoding 34%" in seen.written
    assert seen.screen() == ["triptych: too large"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("accepted", [False, True])
def test_the_bar_is_gone_after_an_interrupt(picture: str, number: signal.Signals, accepted: bool) -> None:
    """Before the gateway accepts and after it, one line is left, and the call is cancelled."""
    arrived, cancelled = threading.Event(), threading.Event()

    def hold(request: gateway_pb2.ChatRequest, context: Context) -> Iterator[chat_pb2.ChatEvent]:
        context.add_callback(cancelled.set)
        arrived.set()
        if accepted:
            accept(context)
            yield chat_pb2.ChatEvent(progress=PROGRESS[0])
        wait(cancelled)

    words = ("ask", "x", "--image", picture, "--address")
    with playing(hold) as gateway, on_terminal(*words, gateway.address) as seen:
        seen.until("queued" if accepted else "uploading")
        wait(arrived)
        seen.process.send_signal(number)
        assert seen.end() == (130 if number == signal.SIGINT else 1)
        wait(cancelled)
    assert seen.screen() == ["triptych: interrupted"]


def test_the_bar_keeps_to_a_narrow_terminal(picture: str) -> None:
    """It is cut to the width, so that it stays on the line that is erased."""
    words = ("ask", "x", "--image", picture, "--max-pixels", "9", "--address")
    with playing(_play) as gateway, on_terminal(*words, gateway.address, columns=12) as seen:
        assert seen.end() == 0
    drawn = seen.written.split("\r\x1b[K")
    assert "encoding 34" in drawn
    assert max(map(len, drawn[:-1])) == 11
    assert seen.screen() == ["A cat."]


def _remarks(tmp_path: Path, layout: media_pb2.MediaLayout, *words: str) -> list[str]:
    """What stands on the terminal after the answer about one medium."""
    kind = "video" if layout.kind == media_pb2.MEDIA_KIND_VIDEO else "image"
    (tmp_path / "file").write_bytes(b"data")

    def play(request: gateway_pb2.ChatRequest, context: Context) -> Iterator[chat_pb2.ChatEvent]:
        yield from answered("A cat.", (layout,))

    with playing(play) as gateway:
        command = ("ask", "x", f"--{kind}", str(tmp_path / "file"), *words, "--address", gateway.address)
        with on_terminal(*command, columns=200, pipe_stdout=True) as seen:
            assert seen.end() == 0
    return [line.removeprefix(f"{tmp_path}{os.sep}") for line in seen.screen()]


def test_a_medium_that_the_default_budget_shrank_is_remarked(tmp_path: Path) -> None:
    """An image and a video have a line each; more frames and other options do not take it away."""
    assert _remarks(tmp_path, LARGE) == [f"file: {REMARK}"]
    clip = "file: 1920 x 1080 seen as 960 x 544, 4 frames (1020 tokens); --detail original or a lower --max-frames"
    remarks = _remarks(tmp_path, video_layout((1920, 1080), (960, 544)), "--max-frames", "4")
    assert remarks == [f"{clip} for larger frames"]


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        (LARGE, ("--detail", "low")),
        (LARGE, ("--max-pixels", "1048576")),
        (image_layout((1000, 700), (992, 704)), ()),  # rounded to whole tokens
        (image_layout((47, 47), (32, 32)), ()),
        (image_layout((10, 10), (64, 64)), ()),  # enlarged
        (image_layout((320, 240), (192, 160)), ()),  # to the limit of a small checkpoint, which no detail lifts
        (video_layout((320, 240), (96, 64)), ()),
        (media_pb2.MediaLayout(kind=media_pb2.MEDIA_KIND_IMAGE), ()),  # a server that tells no sizes
    ],
)
def test_other_sizes_are_not_remarked(tmp_path: Path, layout: media_pb2.MediaLayout, words: tuple[str, ...]) -> None:
    """Who chose a budget knows it, rounding loses nothing, and a checkpoint's own limit is no budget."""
    assert _remarks(tmp_path, layout, *words) == []


def test_the_flags_reach_the_gateway(picture: str) -> None:
    """Each flag goes to its field, and without flags none is set."""
    flags = ("--min-pixels", "4", "--max-pixels", "5", "--fps", "0.5", "--max-frames", "6", "--detail", "original")
    with playing(_play) as gateway:
        for words in (flags, ()):
            asked = _piped("x", "--image", picture, *words, "--address", gateway.address)
            assert asked.returncode == 0, asked.stderr
        assert [sent.media for sent in gateway.chats] == [
            media_pb2.MediaOptions(min_pixels=4, max_pixels=5, fps=0.5, max_frames=6, detail=media_pb2.DETAIL_ORIGINAL),
            media_pb2.MediaOptions(),
        ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--max-pixels", "0"), "argument --max-pixels: 0 must be from 1 to 2147483648"),
        (("--min-pixels", "2147483649"), "argument --min-pixels: 2147483649 must be from 1 to 2147483648"),
        (("--max-pixels", "many"), "argument --max-pixels: invalid integer value: 'many'"),
        (("--min-pixels", "9", "--max-pixels", "5"), "argument --max-pixels: 5 is less than --min-pixels, which is 9"),
        (("--fps", "0"), "argument --fps: 0 must be greater than 0 and at most 60"),
        (("--fps", "nan"), "argument --fps: nan must be greater than 0 and at most 60"),
        (("--fps", "fast"), "argument --fps: invalid number value: 'fast'"),
        (("--max-frames", "4097"), "argument --max-frames: 4097 must be from 1 to 4096"),
        (("--detail", "most"), "argument --detail: invalid choice: 'most' (choose from "),
        (("--stop", "a", "--stop", ""), "argument --stop: must not be empty"),
    ],
)
def test_wrong_usage_is_one_line(words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A value out of its range is exit code 2 and a line that names the flag and the range."""
    with pytest.raises(SystemExit) as ended:
        cli.main(["ask", "x", *words])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"triptych ask: {said}")
    assert line.endswith("; see triptych ask --help")


def _think(request: gateway_pb2.ChatRequest, context: Context) -> Iterator[chat_pb2.ChatEvent]:
    accept(context)
    yield from answered("A cat.", reasoning=("Fur ", "and\nears."))


def test_what_the_model_thinks_is_dimmed_on_a_terminal() -> None:
    """And set apart from the answer by a blank line."""
    with playing(_think) as gateway, on_terminal("ask", "x", "--address", gateway.address) as seen:
        assert seen.end() == 0
    assert seen.written.endswith("\x1b[2mFur \x1b[0m\x1b[2mand\r\nears.\x1b[0m\r\n\r\nA cat.\r\n")


def test_what_the_model_thinks_is_not_in_a_pipe() -> None:
    """There the answer is alone; the bar tells that the model thinks."""
    with playing(_think) as gateway, on_terminal("ask", "x", "--address", gateway.address, pipe_stdout=True) as seen:
        assert seen.end() == 0
        assert seen.process.stdout is not None
        assert seen.process.stdout.read() == "A cat.\n"
        assert "thinking" in seen.written
        assert seen.screen() == []


def test_what_the_model_thinks_is_apart_in_json() -> None:
    """Beside the answer's text."""
    with playing(_think) as gateway:
        answer = json.loads(_piped("x", "--json", "--address", gateway.address).stdout)
    assert (answer["reasoning"], answer["text"]) == ("Fur and\nears.", "A cat.")


@pytest.mark.parametrize(
    ("flags", "choice", "sampling"),
    [((), None, None), (("--thinking",), True, None), (("--no-thinking", "--recommended-sampling"), False, True)],
)
def test_flags_of_models_that_think(flags: tuple[str, ...], choice: bool | None, sampling: bool | None) -> None:
    """What is not said is the model's and the server's to choose."""
    with playing(_think) as gateway:
        assert _piped("x", *flags, "--address", gateway.address).returncode == 0
        (request,) = gateway.chats
    assert (request.enable_thinking if request.HasField("enable_thinking") else None) == choice
    generation = request.generation
    assert (generation.recommended_sampling if generation.HasField("recommended_sampling") else None) == sampling


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a few files that only a gateway without eyes takes for media."""
    for name in ("a.png", "b.png", "c.mp4"):
        (tmp_path / name).write_text(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _in_process(gateway: Scripted, *words: str) -> int:
    return cli.main(["ask", "--address", gateway.address, *words])


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        (("why?", "--image", "a.png", "b.png"), ["a.png", "b.png", "why?"]),
        (("why?", "--image", "a.png", "--image", "b.png"), ["a.png", "b.png", "why?"]),
        (("--image", "a.png", "b.png", "why?"), ["a.png", "b.png", "why?"]),
        (("--image", "a.png", "--max-tokens", "5", "why?"), ["a.png", "why?"]),
        (("--image", "a.png", "why?", "--max-tokens", "5"), ["a.png", "why?"]),
        (("--video", "c.mp4", "--image", "a.png", "b.png", "--", "why?"), ["a.png", "b.png", "c.mp4", "why?"]),
        (("--image", "a.png", "--video", "c.mp4", "why?"), ["a.png", "c.mp4", "why?"]),
        (("a.png", "--image", "b.png"), ["b.png", "a.png"]),  # a first word is the question, whatever it names
        (("--image", "a.png", "why? " * 99), ["a.png", "why? " * 99]),  # no file has so long a name
    ],
)
def test_a_flag_takes_several_paths_and_never_the_question(
    files: Path, words: tuple[str, ...], asked: list[str]
) -> None:
    """The question may come before the flags and behind them."""
    with playing(_play) as gateway:
        assert _in_process(gateway, *words) == 0
        parts = gateway.chats[0].messages[-1].parts
    assert [part.text or (part.image.data or part.video.data).decode() for part in parts] == asked


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--image", "a.png"),
        ("--image", "none.png"),
        ("--image", "a.png", "b.png"),  # the last word is a file: none of them is the question
        ("--image", "a.png", "why?", "--video", "c.mp4", "how?"),
        ("-", "--image", "-"),
        ("why?", "--image", "-", "-"),
    ],
)
def test_without_one_question_it_is_wrong_usage(
    files: Path, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """One line and exit code 2."""
    with pytest.raises(SystemExit) as ended:
        cli.main(["ask", *words])
    assert ended.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_stdin_is_the_question_or_a_picture(files: Path) -> None:
    """`-` in the place of either."""
    with playing(_play) as gateway:
        for words, stdin in ((("-", "--image", "a.png"), "why?\n"), (("why?", "--image", "-"), b"\xff picture")):
            asked = _piped(*words, "--address", gateway.address, stdin=stdin)
            assert (asked.returncode, asked.stdout) == (0, "A cat.\n"), asked.stderr
        first, second = (request.messages[0].parts for request in gateway.chats)
        assert [part.text for part in first] == ["", "why?"]
        assert (second[0].image.data, second[1].text) == (b"\xff picture", "why?")
        empty = _piped("-", "--address", gateway.address)
    assert (empty.returncode, empty.stderr) == (1, "triptych: nothing came on stdin\n")


def test_sampling_and_system_flags_reach_the_gateway() -> None:
    """Each goes to its field."""
    flags = (
        "--system Brief. --max-tokens 9 --temperature 0.5 --top-p 0.25 --top-k 3 --min-p 0.125 "
        "--seed 18446744073709551615 --stop a --stop b "
        "--repetition-penalty 1.5 --presence-penalty -1 --frequency-penalty 0.5"
    )
    with playing(_play) as gateway:
        assert _in_process(gateway, "why?", *flags.split()) == 0
        (request,) = gateway.chats
    assert [message.parts[0].text for message in request.messages] == ["Brief.", "why?"]
    assert request.generation == chat_pb2.GenerationOptions(
        max_tokens=9,
        temperature=0.5,
        top_p=0.25,
        top_k=3,
        min_p=0.125,
        seed=(1 << 64) - 1,
        stop=["a", "b"],
        repetition_penalty=1.5,
        presence_penalty=-1,
        frequency_penalty=0.5,
    )


def _says(text: str, **finished: Any) -> Script:
    usage = chat_pb2.Usage(completion_tokens=7)
    return lambda request, context: answered(text, finished=chat_pb2.Finished(usage=usage, **finished))


def test_a_schema_goes_along_and_the_json_comes_in_one_line(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """White space between tokens is the model's whim."""
    (files / "schema.json").write_text('{"type": "object", "properties": {"z": {}, "a": {}}}')
    with playing(_says('{"z"\n\n : 1,\t"a": "ä"}', reason=chat_pb2.FINISH_REASON_STOP)) as gateway:
        assert _in_process(gateway, "why?", "--schema", "schema.json") == 0
        (request,) = gateway.chats
    assert capsys.readouterr() == ('{"z": 1, "a": "ä"}\n', "")
    assert request.generation.response_format.json_schema == (files / "schema.json").read_text()


def test_json_that_was_cut_is_a_failure(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What there is of it is printed, and the exit code is 1."""
    (files / "schema.json").write_text("{}")
    with playing(_says('{"z": ', reason=chat_pb2.FINISH_REASON_LENGTH)) as gateway:
        assert _in_process(gateway, "why?", "--schema", "schema.json") == 1
    said = "triptych: the JSON is incomplete, cut at 7 tokens: --max-tokens\n"
    assert capsys.readouterr() == ('{"z": \n', said)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot read schema.json: No such file or directory"),
        ("{", "schema.json is no JSON: "),
        ("[]", "schema.json is no JSON schema: it must be an object"),
    ],
)
def test_a_bad_schema_is_one_line(
    files: Path, content: str | None, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is sent."""
    if content is not None:
        (files / "schema.json").write_text(content)
    assert cli.main(["ask", "why?", "--schema", "schema.json", "--address", "127.0.0.1:1"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"triptych: {said}")


@pytest.mark.parametrize(
    ("finished", "said"),
    [
        ({"reason": chat_pb2.FINISH_REASON_STOP}, ""),
        ({"reason": chat_pb2.FINISH_REASON_LENGTH}, "triptych: cut at 7 tokens: --max-tokens\n"),
        (
            {"reason": chat_pb2.FINISH_REASON_LENGTH, "limit": chat_pb2.FINISH_LIMIT_MAX_TOKENS},
            "triptych: cut at 7 tokens: --max-tokens\n",
        ),
        (
            {"reason": chat_pb2.FINISH_REASON_LENGTH, "limit": chat_pb2.FINISH_LIMIT_DEADLINE},
            "triptych: cut at 7 tokens: the time for an answer was over\n",
        ),
    ],
)
def test_an_answer_that_was_cut_says_so(finished: Any, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """On stderr; stdout has the answer alone."""
    with playing(_says("A cat", **finished)) as gateway:
        assert _in_process(gateway, "why?") == 0
    assert capsys.readouterr() == ("A cat\n", said)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (invalid("messages[1].parts[1].image", "is no image"), "b.png: is no image"),
        (invalid("messages[1].parts[2].video.data", "is no video"), "c.mp4: is no video"),
        (invalid("messages[0].parts[0].text", "is too long"), "messages[0].parts[0].text: is too long"),
        (invalid("generation.response_format.json_schema", "is wrong"), "schema.json: is wrong"),
        (invalid("generation.top_p", "is wrong"), "--top-p: is wrong"),
        (invalid("generation.logprobs", "is wrong"), "generation.logprobs: is wrong"),
    ],
)
def test_an_error_names_the_file_or_the_flag(
    files: Path, error: ServiceError, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the place of the field of the message."""
    (files / "schema.json").write_text("{}")

    def play(request: gateway_pb2.ChatRequest, context: Context) -> Iterator[chat_pb2.ChatEvent]:
        fail(context, error)
        yield from ()

    words = ("why?", "--system", "x", "--image", "a.png", "b.png", "--video", "c.mp4", "--schema", "schema.json")
    with playing(play) as gateway:
        assert _in_process(gateway, *words) == 1
    assert capsys.readouterr().err == f"triptych: {said}\n"


def test_more_tokens_than_fit_are_told_with_the_flag(capsys: pytest.CaptureFixture[str]) -> None:
    """The remedy is none of the protocol's fields, which no flag sets."""

    def play(request: gateway_pb2.ChatRequest, context: Context) -> Iterator[chat_pb2.ChatEvent]:
        tokens = request.generation.max_tokens
        try:
            if tokens == 90:
                check_room(20, tokens, 100)
            check_positions(np.array([[0, 20]]), tokens, 100)
        except ServiceError as error:
            fail(context, error)
        yield from ()

    for tokens, why in (
        ("90", "the prompt, of at least 20 tokens, leaves at most 80 of the context of 100"),
        ("95", "the answer begins at position 20 of the model's 100"),
    ):
        with playing(play) as gateway:
            assert _in_process(gateway, "why?", "--max-tokens", tokens) == 1
        said = f"triptych: --max-tokens: is {tokens}; {why}; lower it, or leave it out\n"
        assert capsys.readouterr().err == said


def test_a_request_over_the_limit_is_a_sentence(picture: str, capsys: pytest.CaptureFixture[str]) -> None:
    """With both sizes."""
    with playing(_play, max_message_bytes=1 << 20) as gateway:
        assert _in_process(gateway, "why?", "--image", picture) == 1
    said = "the request is 1.4 MiB and the server takes 1.0 MiB: send fewer or smaller images and videos"
    assert capsys.readouterr().err == f"triptych: {said}\n"


def test_an_interrupt_in_the_middle_begins_a_line(picture: str) -> None:
    """Exit code 130, and no traceback; what was answered stays."""
    cancelled = threading.Event()

    def hold(request: gateway_pb2.ChatRequest, context: Context) -> Iterator[chat_pb2.ChatEvent]:
        context.add_callback(cancelled.set)
        yield chat_pb2.ChatEvent(delta=chat_pb2.Delta(text="A c"))
        wait(cancelled)

    with playing(hold) as gateway, on_terminal("ask", "x", "--address", gateway.address) as seen:
        seen.until("A c")
        seen.process.send_signal(signal.SIGINT)
        assert seen.end() == 130
        wait(cancelled)
    assert seen.screen() == ["A c", "triptych: interrupted"]


def test_a_pipe_in_the_place_of_a_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is refused, and not waited for."""
    os.mkfifo(tmp_path / "pipe")
    for flag in ("--image", "--video", "--schema"):
        assert cli.main(["ask", "x", flag, str(tmp_path / "pipe"), "--address", "127.0.0.1:1"]) == 1
        assert capsys.readouterr().err == f"triptych: cannot read {tmp_path / 'pipe'}: it is no regular file\n"


def test_tls_at_a_plain_port_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """The flag is at fault, and not the gateway."""
    with playing(_play) as gateway:
        assert cli.main(["ask", "x", "--tls", "--address", gateway.address]) == 1
    said = f"triptych: the port at {gateway.address} does not speak TLS: leave out --tls"
    assert capsys.readouterr().err.startswith(said)


def test_a_question_that_is_no_text_is_one_line() -> None:
    """Bytes of the terminal that are no UTF-8."""
    command = [sys.executable, "-m", "triptych_cli", "ask", b"\xff", "--address", "127.0.0.1:1"]
    asked = subprocess.run(command, capture_output=True, timeout=SECONDS, check=False)
    assert asked.returncode == 1
    (line,) = asked.stderr.splitlines()
    assert line.startswith(b"triptych: the request cannot be sent: ")


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    """It is that of the package."""
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert (ended.value.code, capsys.readouterr().out) == (0, f"triptych {version('triptych')}\n")
