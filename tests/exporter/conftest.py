"""Checkpoints and bundles that several tests read; none may write into them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers

import exporter
from serving.bundle import Bundle
from tests.checkpoints import make_checkpoint
from tests.measuring import unmeasured
from tests.threads import one_thread

transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]


@pytest.fixture(autouse=True, scope="session")
def _unmeasured() -> Iterator[None]:
    """Exports do not measure what the encoder's types cost."""
    with unmeasured():
        yield


@pytest.fixture(autouse=True, scope="package")
def _one_thread() -> Iterator[None]:
    """Models this small are slower on several threads, all the more beside others."""
    with one_thread():
        yield


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base shape, stored as the published models are: bfloat16."""
    return make_checkpoint(tmp_path_factory.mktemp("source") / "Tiny-Qwen3-VL", dtype=torch.bfloat16)


@pytest.fixture(scope="session")
def int4_bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The base shape at INT4."""
    return exporter.export(checkpoint, tmp_path_factory.mktemp("int4") / "bundle")


@pytest.fixture(scope="session")
def fp32_bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The base shape at float32."""
    return exporter.export(checkpoint, tmp_path_factory.mktemp("fp32") / "bundle", precision="fp32")
