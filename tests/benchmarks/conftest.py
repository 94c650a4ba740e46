"""Small models to try benchmarks on."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import exporter
from benchmarks.checkpoint import SHAPES, make
from serving.bundle import Bundle
from tests.checkpoints import make_checkpoint
from tests.measuring import unmeasured
from tests.threads import one_thread


@pytest.fixture(autouse=True, scope="session")
def _unmeasured() -> Iterator[None]:
    """Exports do not measure what the encoder's types cost."""
    with unmeasured():
        yield


@pytest.fixture(autouse=True, scope="package")
def _one_thread() -> Iterator[None]:
    """Models this small are slower on several threads."""
    with one_thread():
        yield


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint of the smallest shape."""
    return make(SHAPES["tiny"], tmp_path_factory.mktemp("bench") / "tiny")


@pytest.fixture(scope="session")
def tiny(tiny_checkpoint: Path) -> Bundle:
    """Its bundle."""
    return exporter.export(tiny_checkpoint, tiny_checkpoint.parent / "bundle", precision="int4", progress=False)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random checkpoint, in two files."""
    return make_checkpoint(tmp_path_factory.mktemp("quality") / "checkpoint", shard_size="1MB")


@pytest.fixture(scope="session")
def bundle(checkpoint: Path) -> Bundle:
    """It at fp32."""
    return exporter.export(checkpoint, checkpoint.parent / "bundle", precision="fp32", progress=False)


@pytest.fixture(scope="session")
def picture() -> bytes:
    """A picture of noise."""
    pixels = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
