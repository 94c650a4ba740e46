"""A model of no use, to try benchmarks on."""

from __future__ import annotations

from pathlib import Path

import pytest

import exporter
from benchmarks.checkpoint import SHAPES, make
from serving.bundle import Bundle


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint of the smallest shape."""
    return make(SHAPES["tiny"], tmp_path_factory.mktemp("bench") / "tiny")


@pytest.fixture(scope="session")
def tiny(tiny_checkpoint: Path) -> Bundle:
    """Its bundle."""
    return exporter.export(tiny_checkpoint, tiny_checkpoint.parent / "bundle", precision="int4", progress=False)
