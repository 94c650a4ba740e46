"""Random checkpoints of several shapes, exported, served, and held against transformers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import exporter
from serving.bundle import Bundle
from tests.checkpoints import CHECKPOINTS
from tests.measuring import unmeasured
from tests.reference import Reference
from tests.system import triptych_system
from triptych import Client


@dataclass(frozen=True)
class Served:
    """One checkpoint: as transformers runs it, and as the three services do."""

    reference: Reference
    checkpoint: Path
    bundle: Bundle
    client: Client


@contextlib.contextmanager
def serving(make: Callable[[Path], Path], folder: Path) -> Iterator[Served]:
    """A checkpoint, exported in fp32 and served."""
    checkpoint = make(folder / "checkpoint")
    bundle = exporter.export(checkpoint, folder / "bundle", precision="fp32")
    with triptych_system(bundle.root) as address, Client(address) as client:
        yield Served(Reference(checkpoint), checkpoint, bundle, client)


@pytest.fixture(autouse=True, scope="session")
def _unmeasured() -> Iterator[None]:
    """Exports do not measure what the encoder's types cost."""
    with unmeasured():
        yield


@pytest.fixture(scope="session", params=CHECKPOINTS)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Each shape in turn, exported in fp32."""
    with serving(CHECKPOINTS[request.param], tmp_path_factory.mktemp(request.param)) as system:
        yield system
