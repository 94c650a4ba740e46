"""One small checkpoint in both layouts, its bundles, and transformers' models of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import exporter
from serving.bundle import Bundle
from tests.phi4_checkpoints import make_phi4, reference


@pytest.fixture(scope="session")
def native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As transformers writes it, with an adapter of PEFT beside."""
    return make_phi4(tmp_path_factory.mktemp("phi4") / "native", "native")


@pytest.fixture(scope="session")
def published_files(native: Path) -> Path:
    """The same weights in the layout of the published files."""
    return make_phi4(native.parent / "published", "published")


@pytest.fixture(scope="session")
def exact(native: Path) -> Bundle:
    """Its fp32 bundle."""
    return exporter.export(native, native.parent / "fp32", precision="fp32")


@pytest.fixture(scope="session")
def references(native: Path) -> dict[bool, Any]:
    """The model in transformers with its adapter merged (True), and without."""
    return {adapted: reference(native, adapted=adapted) for adapted in (False, True)}
