"""A tiny random checkpoint of the family, exported."""

from __future__ import annotations

from pathlib import Path

import pytest

import exporter
from serving.bundle import Bundle
from tests.checkpoints import make_qwen2_5_vl


@pytest.fixture(scope="session")
def qwen2_5_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Windows and whole frames in turns."""
    return make_qwen2_5_vl(tmp_path_factory.mktemp("qwen2_5_vl") / "checkpoint")


@pytest.fixture(scope="session")
def qwen2_5_bundle(qwen2_5_checkpoint: Path) -> Bundle:
    """Its bundle."""
    return exporter.export(qwen2_5_checkpoint, qwen2_5_checkpoint.parent / "bundle", precision="fp32")
