"""The script for machines with a GPU, tried on the CPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.gpu import checks, encoder

RUN = Path(__file__).with_name("run")
NOT_NEEDED = ("av", "grpc", "onnxruntime", "prometheus_client", "pydantic", "structlog")
"""What the encoder's checks do without."""


def run(*words: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the script as a person does.

    Args:
        words: Its arguments.
        path: Where modules are looked for before the installed ones.
    """
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(path or "")}
    return subprocess.run([RUN, *words], env=environment, capture_output=True, text=True, timeout=170, check=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu() -> None:
    """It says so in one line and fails."""
    done = run()
    assert (done.returncode, len(done.stdout.splitlines())) == (1, 1), done.stderr
    assert "no GPU" in done.stdout


def test_the_encoder_where_the_services_cannot_run(tmp_path: Path) -> None:
    """With PyTorch and transformers alone the encoder is checked in three types, and what was skipped is said."""
    for name in NOT_NEEDED:
        (tmp_path / f"{name}.py").write_text(f"raise ModuleNotFoundError('No module named {name}', name='{name}')\n")
    done = run("--device", "cpu", "--shape", "small", path=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^SKIP .* not installed", done.stdout, re.MULTILINE)
    assert len(re.findall(r"^PASS  \w+: .*\(negative control\)", done.stdout, re.MULTILINE)) == 2 * len(encoder.LIMITS)
    assert len(re.findall(r"patches a second at", done.stdout)) == len(encoder.LIMITS)
    passed = len(re.findall(r"^PASS", done.stdout, re.MULTILINE))
    assert re.fullmatch(rf"{passed} passed, 0 failed  \(\d+ s\)", done.stdout.splitlines()[-1])


def test_features_that_are_not_close_fail(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Negative control: held to more than bfloat16 can give, the checks fail and so does the script."""
    monkeypatch.setattr(sys, "argv", ["run", "--device", "cpu", "--shape", "small", "--no-services"])
    monkeypatch.setattr(encoder, "LIMITS", {torch.bfloat16: encoder.Limit(1e-9, 1.0)})
    assert checks.main() == 1
    printed = capsys.readouterr().out
    failed = len(re.findall(r"^FAIL", printed, re.MULTILINE))
    assert failed >= len(encoder.CASES)
    assert f"{failed} failed" in printed.splitlines()[-1]


def test_an_error_on_the_way_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A part that ends in an error is a failure, and the closing line is there all the same."""
    monkeypatch.setattr(sys, "argv", ["run", "--device", "cpu", "--shape", "small", "--no-services"])
    monkeypatch.delattr(encoder, "write_encoder")
    assert checks.main() == 1
    assert "0 passed, 1 failed" in capsys.readouterr().out


@pytest.mark.e2e
def test_the_services() -> None:
    """Where everything is installed, the three services answer with the encoder in float32 and in `auto`'s type."""
    done = run("--device", "cpu", "--shape", "small")
    assert done.returncode == 0, done.stdout + done.stderr
    for dtype in ("float32", "auto"):
        assert len(re.findall(rf"^PASS  services, {dtype}:", done.stdout, re.MULTILINE)) == 7
    assert "SKIP" not in done.stdout
