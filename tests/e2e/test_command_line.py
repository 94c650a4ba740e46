"""The command line keeps its contract."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
from pathlib import Path

import httpx
import jsonschema
import psutil
import pytest

from demo.pictures import CLIP, CONVERSATIONS, EXAMPLES
from tests.e2e.conftest import TRIPTYCH, Up, run, up
from tests.reference import Reference
from triptych import Client, user

pytestmark = pytest.mark.e2e
(_NAME,) = CONVERSATIONS[0].files
PICTURE = EXAMPLES / _NAME


def _one_line(finished: subprocess.CompletedProcess[str], code: int) -> str:
    assert finished.returncode == code, finished.stderr
    lines = finished.stderr.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_ask_answers_in_words(int4_system: Up) -> None:
    """A question about a picture is answered on stdout, and nothing else is printed."""
    answer = int4_system.ask("What is in the picture?", "--image", str(PICTURE))
    assert answer.returncode == 0, answer.stderr
    assert answer.stderr == ""
    assert answer.stdout == f"{CONVERSATIONS[0].turns[0][1]}\n"


def test_ask_takes_videos(int4_system: Up) -> None:
    """A question about a clip."""
    (conversation,) = (one for one in CONVERSATIONS if one.files == (CLIP,))
    ((question, expected),) = conversation.turns
    answer = int4_system.ask(question, "--video", str(EXAMPLES / CLIP))
    assert (answer.returncode, answer.stdout) == (0, f"{expected}\n"), answer.stderr


def test_ask_json_has_the_tokens_of_transformers(fp32_system: Up, checkpoint: Path) -> None:
    """At fp32, `--json` gives the prompt and the greedy tokens that transformers gives for the same checkpoint."""
    question = "What is in the picture?"
    asked = fp32_system.ask(question, "--image", str(PICTURE), "--max-tokens", "40", "--json")
    assert asked.returncode == 0, asked.stderr
    answer = json.loads(asked.stdout)
    reference = Reference(checkpoint)
    inputs = reference.inputs([("user", [PICTURE.read_bytes(), question])])
    assert answer["prompt_token_ids"] == inputs.input_ids[0].tolist()
    assert answer["token_ids"] == reference.generate(inputs, 40)
    assert answer["text"] == reference.tokenizer.decode(answer["token_ids"], skip_special_tokens=True)
    assert answer["finish_reason"] == "stop"
    assert answer["usage"]["prompt_tokens"] == inputs.input_ids.shape[1]
    fields = {"text", "reasoning", "token_ids", "prompt_token_ids", "finish_reason", "usage", "timings", "media"}
    assert set(answer) == {*fields, "finish_limit"}
    assert answer["timings"]["time_to_first_token_seconds"] > 0


def test_ask_answers_with_json_of_a_schema(int4_system: Up, tmp_path: Path) -> None:
    """`--schema` prints one line of JSON that keeps the schema; without it the model answers in words."""
    schema = {
        "type": "object",
        "properties": {"shapes": {"type": "integer", "minimum": 0, "maximum": 9}, "red": {"type": "boolean"}},
        "required": ["shapes", "red"],
        "additionalProperties": False,
    }
    (tmp_path / "shapes.json").write_text(json.dumps(schema))
    question = ("How many shapes are there?", "--image", str(PICTURE))
    answer = int4_system.ask(*question, "--schema", str(tmp_path / "shapes.json"))
    assert (answer.returncode, answer.stderr) == (0, "")
    assert answer.stdout.count("\n") == 1
    jsonschema.validate(json.loads(answer.stdout), schema)
    with pytest.raises(ValueError, match="Expecting value"):
        json.loads(int4_system.ask(*question).stdout)


def test_max_tokens_ends_the_answer(int4_system: Up) -> None:
    """The answer stops after so many tokens and says why."""
    asked = int4_system.ask("What is in the picture?", "--image", str(PICTURE), "--max-tokens", "2", "--json")
    answer = json.loads(asked.stdout)
    assert len(answer["token_ids"]) == 2
    assert (answer["finish_reason"], answer["finish_limit"]) == ("length", "max_tokens")


@pytest.mark.parametrize("max_tokens", [None, 65_536])
def test_an_answer_over_http_is_as_long_as_it_is(int4_system: Up, max_tokens: int | None) -> None:
    """Without `max_tokens`, or with more than there is room for: no error, the end is the model's, a cut is told."""
    body = {"messages": [{"role": "user", "content": "How are you?"}], "max_tokens": max_tokens}
    response = httpx.post(f"{int4_system.http}/v1/chat/completions", json=body, timeout=60)
    assert response.status_code == 200, response.text
    answer = response.json()
    (choice,) = answer["choices"]
    assert (choice["finish_reason"], "finish_limit" in choice) == ("stop", False)
    assert 0 < answer["usage"]["completion_tokens"] < 1024
    told = answer.get("max_tokens")
    assert told is None if max_tokens is None else 0 < told < max_tokens


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("ask",),
        ("ask", "x", "--max-tokens", "0"),
        ("ask", "x", "--temperature", "warm"),
        ("up", "--grpc-port", "70000"),
        ("up", "--vision-replicas", "0"),
        ("export", "only-one"),
        ("export", "a", "b", "--precision", "int3"),
        ("fly",),
    ],
)
def test_wrong_usage_is_exit_code_2(words: tuple[str, ...]) -> None:
    """What argparse can see is wrong usage."""
    assert run(*words).returncode == 2


def test_failures_are_one_line_and_exit_code_1(tmp_path: Path, int4_system: Up) -> None:
    """A missing file, an absent gateway, a bad bundle, a bad checkpoint, a refused request: one line each."""
    assert "nowhere.png" in _one_line(int4_system.ask("x", "--image", "nowhere.png"), 1)
    assert "triptych up" in _one_line(run("ask", "x", "--address", "127.0.0.1:1"), 1)
    assert "bundle.json" in _one_line(run("up", "--bundle", str(tmp_path)), 1)
    assert str(tmp_path) in _one_line(run("export", str(tmp_path), str(tmp_path / "out")), 1)
    (tmp_path / "text.png").write_text("this is text")
    assert "image" in _one_line(int4_system.ask("x", "--image", str(tmp_path / "text.png")), 1)
    assert "temperature" in _one_line(int4_system.ask("x", "--temperature", "9"), 1)


def test_the_demo_takes_no_settings_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """It starts, asks all its questions and stops, whatever is set for another system."""
    for name, value in (("GATEWAY_TLS_CERT", "none.pem"), ("VISION_DEVICE", "cuda:99"), ("DECODER_SLOTS", "none")):
        monkeypatch.setenv(name, value)
    finished = run("demo")
    assert (finished.returncode, finished.stderr) == (0, "")
    for question, _ in (turn for conversation in CONVERSATIONS for turn in conversation.turns):
        assert f"> {question}\n" in finished.stdout
    assert finished.stdout.endswith("\nstopped\n")


def test_up_says_which_port_is_taken() -> None:
    """A taken port is one line that names the flag, and nothing stays behind."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        port = str(held.getsockname()[1])
        assert "--grpc-port" in _one_line(run("up", "--grpc-port", port, "--http-port", "0"), 1)
        assert "--http-port" in _one_line(run("up", "--grpc-port", "0", "--http-port", port), 1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_up_stops_cleanly(number: signal.Signals) -> None:
    """Either signal ends the launcher with 0 and leaves no service running."""
    with up() as system:
        children = psutil.Process(system.process.pid).children(recursive=True)
        assert len(children) >= 3
        system.process.send_signal(number)
        assert system.process.wait(60) == 0
        _, alive = psutil.wait_procs(children, timeout=10)
        assert alive == []


def test_a_killed_launcher_takes_the_services_along() -> None:
    """Even SIGKILL leaves nothing behind."""
    with up() as system:
        children = psutil.Process(system.process.pid).children(recursive=True)
        system.process.kill()
        _, alive = psutil.wait_procs(children, timeout=60)
        assert alive == []


def test_replicas_are_started_and_one_may_die() -> None:
    """With two of each, the death of one vision and one decoder replica is no failure, nor is that of the gateway."""
    with up("--vision-replicas", "2", "--decoder-replicas", "2") as system, Client(system.grpc) as client:
        services: dict[str, list[psutil.Process]] = {"vision_service": [], "decoder_service": []}
        for child in psutil.Process(system.process.pid).children():
            for name, found in services.items():
                if name in child.cmdline():
                    found.append(child)
        assert {name: len(found) for name, found in services.items()} == {"vision_service": 2, "decoder_service": 2}
        question = ["What is in the picture?"]
        for found in services.values():
            found[0].kill()
            for _ in range(4):
                answer = system.ask(*question, "--image", str(PICTURE))
                assert answer.returncode == 0, answer.stderr
        assert client.answer([user("hello")], max_tokens=2).token_ids
        (gateway,) = (child for child in psutil.Process(system.process.pid).children() if "gateway" in child.cmdline())
        gateway.kill()
        gateway.wait()
        assert client.answer([user("hello")], max_tokens=2).token_ids  # its retries last until there is another


def test_the_console_script_is_installed() -> None:
    """`.venv/bin/triptych` exists and explains itself."""
    assert Path(TRIPTYCH).exists()
    helped = run("--help")
    assert helped.returncode == 0
    assert all(word in helped.stdout for word in ("up", "ask", "export"))
