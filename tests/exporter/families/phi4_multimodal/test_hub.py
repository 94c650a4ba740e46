"""A Hugging Face id: the folder of the vision adapter is downloaded with the model, and no other."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import exporter
from serving.bundle import Bundle
from tests.exporter.hub import running_hub

MODEL = "someone/Fine-Tuned-Phi"


def test_the_folder_of_the_adapter_is_downloaded(
    native: Path, exact: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bundle is that of the local checkpoint."""
    folder = shutil.copytree(native, tmp_path / "published")
    shutil.copytree(folder / "vision-lora", folder / "speech-lora")
    with running_hub(monkeypatch, tmp_path / "cache") as hub:
        hub.models[MODEL] = folder
        bundle = exporter.export(MODEL, tmp_path / "out", precision="fp32")
        assert {name for name in hub.sent if "/" in name} == {
            "vision-lora/adapter_config.json",
            "vision-lora/adapter_model.safetensors",
        }
    assert bundle.files == exact.files
