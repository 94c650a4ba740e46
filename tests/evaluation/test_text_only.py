"""`triptych evaluate` of a model that takes text only."""

from __future__ import annotations

from pathlib import Path

import pytest

import exporter
from evaluation.divergence import NO_ENCODER, compare
from evaluation.errors import EvaluationError
from evaluation.prompts import Shown, built_in_texts
from evaluation.reference import open_reference
from exporter.progress import Progress
from serving.bundle import Bundle
from tests.checkpoints import make_qwen3
from tests.pictures import noise, png


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random Qwen3."""
    return make_qwen3(tmp_path_factory.mktemp("text") / "checkpoint", layers=2)


@pytest.fixture(scope="module")
def bundle(source: Path) -> Bundle:
    """Its INT4 bundle, without calibration."""
    return exporter.export(source, source.parent / "bundle", calibrate=False, progress=False)


def test_graphs_are_compared_with_transformers(source: Path, bundle: Bundle) -> None:
    """On texts, in one row for each way through the graphs; INT8 is nearer than INT4."""
    found = compare(bundle, open_reference(str(source), bundle), built_in_texts()[:4], bars=Progress(enabled=False))
    assert [(row.prefill_graph, row.decode_graph, row.encoder) for row in found.rows] == [
        ("int4", "int4", NO_ENCODER),
        ("int8", "int8", NO_ENCODER),
        ("int8", "int4", NO_ENCODER),
    ]
    int4, int8 = (row.prefill.mean for row in found.rows[:2] if row.prefill is not None)
    assert int4 is not None
    assert int8 is not None
    assert 0 < int8 < int4 < 1


def test_pictures_are_refused(source: Path, bundle: Bundle) -> None:
    """A file of questions about pictures cannot be asked."""
    shown = [Shown([png(noise(32, 32))], "What is it?")]
    with pytest.raises(EvaluationError, match="takes text only"):
        compare(bundle, open_reference(str(source), bundle), shown, bars=Progress(enabled=False))
