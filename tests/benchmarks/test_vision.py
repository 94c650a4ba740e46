"""The encoder's benchmark measures both sides on the same work and tells it in three forms."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import exporter
from benchmarks import vision
from serving.bundle import Bundle
from tests.checkpoints import make_checkpoint

SMALL = (vision.Case(1, (4, 6)), vision.Case(3, (2, 2)))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A tiny bundle."""
    folder = tmp_path_factory.mktemp("bench")
    return exporter.export(make_checkpoint(folder / "checkpoint"), folder / "bundle", precision="fp32")


def test_both_sides_compute_the_same(bundle: Bundle) -> None:
    """Each case gives rates of all sides, their ratios, and features that agree."""
    results = vision.run(bundle, repeats=3, cases=SMALL, threads=1)
    assert [(one.images, one.patches) for one in results] == [(1, 24), (3, 12)]
    for one in results:
        assert min(one.transformers, one.triptych, one.bfloat16, one.ratio, one.bfloat16_ratio) > 0
        assert one.difference < 1e-5
        assert one.int8 is None or min(one.int8, one.int8_ratio or 0) > 0


def test_forms(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The program prints a row for each case, or the same as JSON."""
    measured = vision.run(bundle, repeats=1, cases=SMALL, threads=1)
    monkeypatch.setattr(vision, "run", lambda bundle, **given: measured)
    assert vision.main(["--bundle", str(bundle.root), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [vision.VisionResult(**one) for one in document["results"]] == measured
    assert vision.main(["--bundle", str(bundle.root)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in printed[1:]] == [["1", "24"], ["3", "12"]]


def test_no_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A bundle that is not there is one sentence and a failure."""
    assert vision.main(["--bundle", str(tmp_path)]) == 1
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_random_model_has_the_published_shape() -> None:
    """The encoder that is drawn is of the dimensions it was asked for, and the same each time."""
    small = {**vision.PUBLISHED, "depth": 18, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2}
    first, second = (vision.random_model(**small) for _ in range(2))
    assert len(first.blocks) == 18
    assert first.config.deepstack_visual_indexes == [5, 11, 17]
    assert all(one.equal(other) for one, other in zip(first.parameters(), second.parameters(), strict=True))
