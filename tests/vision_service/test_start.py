"""How the service starts, and says why it does not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from serving.bundle import Bundle
from serving.server import StartError
from vision_service.service import VisionService, choose_device
from vision_service.settings import VisionSettings

CPU = torch.device("cpu")


def test_defaults() -> None:
    """The port and the prefix of the environment are the documented ones."""
    settings = VisionSettings(bundle=Path("b"))
    assert (settings.port, settings.device, settings.dtype, settings.wire_dtype) == (50061, "auto", "auto", "float32")
    assert VisionSettings.model_config["env_prefix"] == "VISION_"


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings come from VISION_*; a variable that is set to nothing is as good as not set."""
    monkeypatch.setenv("VISION_BUNDLE", "/models/b")
    monkeypatch.setenv("VISION_MAX_QUEUE", "3")
    monkeypatch.setenv("VISION_DEVICE", "")
    settings = VisionSettings()  # type: ignore[call-arg]
    assert (settings.bundle, settings.max_queue, settings.device) == (Path("/models/b"), 3, "auto")


@pytest.mark.parametrize("device", ["tpu", "cuda:", "cuda:x", "cpu:1", " cpu"])
def test_unknown_devices(device: str) -> None:
    """A device that there cannot be is wrong usage."""
    with pytest.raises(ValidationError):
        VisionSettings(bundle=Path("b"), device=device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_devices_without_a_gpu() -> None:
    """Without a GPU `auto` is the CPU, and asking for one is refused."""
    assert choose_device("auto") == choose_device("cpu") == CPU
    for name in ("cuda", "cuda:1"):
        with pytest.raises(StartError, match=name):
            choose_device(name)


async def test_bad_bundles(bundle: Bundle, tmp_path: Path) -> None:
    """A bundle that is not there, or damaged, keeps the service from starting, in one sentence."""

    async def why(folder: Path, **settings: bool) -> str:
        service = VisionService(VisionSettings(bundle=folder, device="cpu", **settings))
        with pytest.raises(StartError) as caught:
            await service.start(lambda serving: None)
        await service.stop()
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "no bundle" in await why(tmp_path / "nothing")
    damaged = tmp_path / "damaged"
    shutil.copytree(bundle.root, damaged)
    weights = damaged / "vision" / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 0x01
    weights.write_bytes(raw)
    header = 8 + int.from_bytes(raw[:8], "little")
    assert "model.safetensors does not match its digest" in await why(damaged)
    for number, says in ((0, "all equal"), (0xFF, "not finite")):  # as a float, four bytes of 255 are NaN
        weights.write_bytes(raw[:header] + bytes([number]) * (len(raw) - header))
        assert says in await why(damaged, verify=False)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the service as a person does."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [sys.executable, "-m", "vision_service", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), "bundle"),
        (("--bundle", "b", "--device", "tpu"), "device"),
        (("--bundle", "b", "--colour", "red"), "colour"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...], expected: str) -> None:
    """Wrong usage ends with 2 and names the flag."""
    done = run(*arguments)
    assert done.returncode == 2
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


def test_cannot_start(tmp_path: Path) -> None:
    """A service that cannot start ends with 1 and one line on stderr."""
    done = run("--bundle", str(tmp_path / "nothing"))
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert "no bundle" in done.stderr
