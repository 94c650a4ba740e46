"""Starting: alone, without torch, and with one sentence where it cannot."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from decoder_service.service import DecoderService
from decoder_service.settings import DecoderSettings
from serving.bundle import Bundle
from serving.server import StartError
from tests.processes import PATIENCE, line, started

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'protos'}"}


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """Run the service to its end."""
    command = [sys.executable, "-m", "decoder_service", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=ENVIRONMENT)


def test_torch_is_not_needed(bundle: Bundle) -> None:
    """The service imports, and lays out prompts, where there is no torch."""
    program = f"""
import sys
sys.modules["torch"] = None
import decoder_service.engine.batching.engine
import decoder_service.engine.genai.child
from decoder_service.service import DecoderService
from decoder_service.families.registry import family_of
from decoder_service.request.prompt import PromptBuilder
from serving.bundle import Bundle
bundle = Bundle.open({str(bundle.root)!r})
prompts = PromptBuilder.load(bundle.decoder_dir, family_of(bundle))
assert sys.modules["torch"] is None
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False, env=ENVIRONMENT
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ((), 2, "bundle"),
        (("--bundle", "x", "--max-queue", "-1"), 2, "max_queue"),
        (("--bundle", "does/not/exist"), 1, "There is no bundle at does/not/exist"),
    ],
)
def test_what_cannot_start_says_why(words: tuple[str, ...], code: int, says: str) -> None:
    """Wrong usage is exit code 2, a bundle that is not there 1, each with one line."""
    done = run(*words)
    assert done.returncode == code
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_the_engine_does_not_outlive_its_server(bundle: Bundle) -> None:
    """A server that is killed outright takes its engine's process with it; SIGTERM to all of them is a clean stop."""
    for number, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 0)):
        command = [sys.executable, "-m", "decoder_service", "--bundle", str(bundle.root), "--port", "0"]
        command += ["--engine", "genai"]
        with started(command, stdout=None, stderr=subprocess.PIPE, env=ENVIRONMENT) as server:
            while "serving" not in (said := line(server.stderr, "the line that says that it is serving")):
                assert said, "it ended before it was serving"
            children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
            for pid in (server.pid, *(children if number is signal.SIGTERM else ())):
                os.kill(int(pid), number)
            assert server.wait(PATIENCE) == code
        assert children
        deadline = time.monotonic() + PATIENCE
        while any(alive(int(pid)) for pid in children) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not any(alive(int(pid)) for pid in children)


def alive(pid: int) -> bool:
    """Whether a process runs: is there, and is no zombie that nobody has collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture
def copy(bundle: Bundle, tmp_path: Path) -> Path:
    """A copy of the bundle."""
    return shutil.copytree(bundle.root, tmp_path / "copy")


async def why(folder: Path, *, verify: bool = True) -> str:
    """Why the service does not start."""
    service = DecoderService(DecoderSettings(bundle=folder, threads=1, verify=verify))
    with pytest.raises(StartError) as caught:
        await service.start(lambda serving: None)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "decoder/fp32/model.onnx",
        "decoder/fp32/model.onnx.data",
        "decoder/embedding.onnx.data",
        "decoder/tokenizer.json",
        "decoder/chat_template.jinja",
    ],
)
async def test_one_bit_of_a_file_keeps_the_service_from_starting(copy: Path, name: str) -> None:
    """The right size with another bit in the middle is found, and what to do is said."""
    raw = bytearray((copy / name).read_bytes())
    raw[len(raw) // 2] ^= 0x01
    (copy / name).write_bytes(raw)
    assert f"damaged, {name} does not match its digest: copy or export it again" in await why(copy)


@pytest.mark.parametrize(("number", "says"), [(0, "all equal"), (0xFF, "not finite")])
async def test_logits_are_looked_at_before_serving(copy: Path, number: int, says: str) -> None:
    """Weights that are all 0, or NaN, are found without digests, too."""
    for data in (copy / "decoder").rglob("*.data"):
        data.write_bytes(bytes([number]) * data.stat().st_size)
    assert f"are {says}: export the bundle again" in await why(copy, verify=False)
