"""What the encoder's types cost is measured, and written into the bundle."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import exporter
from exporter import encoder_types, measuring, pipeline
from exporter.divergence import Asked, Graph
from exporter.encoder_types import TYPES, measure_types
from exporter.pictures import KINDS
from serving.bundle import MANIFEST, Bundle, EncoderType
from tests.vision_service.operators.here import needs_operators
from triptych_cli import main as cli
from vision_service.families.registry import family_of
from vision_service.operators import Operators, OperatorsError

POSITIONS = 4 * 2 * 6  # kinds, pictures of each, and positions


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports measure, as they do outside of tests."""
    monkeypatch.setattr(pipeline, "measure_apart", measuring.measure_apart)


def _without_operators() -> Operators:
    raise OperatorsError("the processor has none")


@pytest.mark.usefixtures("measured")
def test_an_export_writes_what_types_cost(
    checkpoint: Path, int4_bundle: Bundle, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """bundle.json gets a divergence for each type that can be computed here, all else is as without; a bar is shown."""
    bundle = exporter.export(checkpoint, tmp_path / "out", progress=True)
    assert bundle.encoder_types is not None
    possible = {name for name in TYPES if encoder_types.missing(name) is None}
    assert "bfloat16" in possible
    assert bundle.encoder_types.keys() == possible
    for found in bundle.encoder_types.values():
        assert 0 < found.divergence < 0.05
        assert found.positions == POSITIONS
    assert (bundle.files, bundle.encoder_fingerprint) == (int4_bundle.files, int4_bundle.encoder_fingerprint)
    assert Bundle.open(bundle.root, verify=True) == bundle
    units = 2 * 8 * (1 + len(possible))
    assert f"{units}/{units}" in capfd.readouterr().err.rsplit("encoder types", 1)[1]


@pytest.mark.usefixtures("measured")
def test_it_can_be_left_out(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `--no-measuring` nothing is run, and bundle.json has no such field, as in bundles of before."""
    monkeypatch.setattr(measuring, "_run", lambda *_: pytest.fail("it was measured"))
    assert cli.main(["export", str(checkpoint), str(tmp_path / "out"), "--no-measuring"]) == 0
    assert "encoder_types" not in json.loads((tmp_path / "out" / MANIFEST).read_bytes())
    assert Bundle.open(tmp_path / "out").encoder_types is None


@pytest.mark.usefixtures("measured")
@pytest.mark.parametrize(
    "end",
    [
        ("raise MemoryError('none left')", "MemoryError: none left (exit code 1)"),
        ("import os; os.kill(os.getpid(), 9)", "it said nothing (exit code -9)"),
        ("print('{\"total\": 48}'); raise SystemExit(3)", "it said nothing (exit code 3)"),
        ("print('hello')", "Expecting value"),
        ("print('[]')", "it wrote '[]'"),
        ("", "types"),
        ("print('{\"total\": 1}'); print('{\"done\": 1}')", "types"),
    ],
)
def test_a_failure_does_not_fail_the_export(
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    end: tuple[str, str],
) -> None:
    """However the measuring process ends, the bundle is whole and lacks the field, and a warning says why."""
    script, why = end
    monkeypatch.setattr(measuring, "_COMMAND", (sys.executable, "-c", script))
    with caplog.at_level(logging.WARNING, "exporter"):
        bundle = exporter.export(checkpoint, tmp_path / "out", phases=["int4"])
    assert bundle.encoder_types is None
    assert Bundle.open(bundle.root, verify=True) == bundle
    [line] = caplog.messages
    assert line.startswith("What the encoder costs in other types than float32 was not measured: ")
    assert why in line


def test_too_little_memory(
    int4_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where less memory is available than measuring takes, it is not begun."""
    monkeypatch.setattr(measuring, "available_memory", lambda: 2**20)
    monkeypatch.setattr(measuring, "_started", lambda *_: pytest.fail("it was begun"))
    assert measuring.measure_apart(int4_bundle.root, pipeline.Progress(enabled=False)) is None
    assert "it takes 0.5 GiB of memory and 0.0 are available" in caplog.text


def test_memory_is_counted_by_the_bundle(
    int4_bundle: Bundle, fp32_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is at least what the graph's file takes; and the system tells what it has, or nothing does."""
    for bundle in (int4_bundle, fp32_bundle):
        graph = bundle.graph_path(bundle.decoder.precision)
        assert measuring._memory(bundle) > graph.with_name("model.onnx.data").stat().st_size
    assert (measuring.available_memory() or 0) > 2**20 or sys.platform != "linux"

    def refuse(*_: Any, **__: Any) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", refuse)
    assert measuring.available_memory() is None


def test_a_type_that_cannot_be_computed_is_left_out(fp32_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the operators int8 is not measured, and the reason is told; every unit of the bar is counted."""
    monkeypatch.setattr(encoder_types, "Operators", _without_operators)
    lines: list[Any] = []
    found = measure_types(fp32_bundle, lines.append)
    assert (found.types.keys(), found.left_out) == ({"bfloat16"}, {"int8": "the processor has none"})
    assert lines[0]["total"] == sum(line["done"] for line in lines[1:]) == 2 * 8 * 2


@pytest.mark.parametrize("name", ["bfloat16", pytest.param("int8", marks=needs_operators)])
def test_the_same_features_cost_the_same_and_others_more(
    fp32_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Measured again a type costs the same to the last digit; float32's features cost nothing, damaged ones more."""
    monkeypatch.setattr(encoder_types, "TYPES", (name,))
    real = encoder_types.encode

    def cost(change: Any, encode_as: str) -> float:
        def encode(bundle: Bundle, media: Any, asked: str) -> encoder_types.Features:
            rows = list(real(bundle, media, "float32" if asked == "float32" else encode_as))
            return rows if asked == "float32" else [change(row) for row in rows]

        monkeypatch.setattr(encoder_types, "encode", encode)
        return measure_types(fp32_bundle, lambda line: None).types[name]["divergence"]

    found = cost(lambda rows: rows, name)
    assert found == cost(lambda rows: rows, name)
    assert cost(lambda rows: rows, "float32") == pytest.approx(0, abs=1e-12)
    assert cost(lambda rows: np.roll(rows, 1, axis=0), name) > 5 * found > 0


@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_weights_may_stay_in_their_file(request: pytest.FixtureRequest, precision: str) -> None:
    """A graph whose float32 weights are not copied says the same within 1e-4; rounded ones are copied as always."""
    bundle: Bundle = request.getfixturevalue(f"{precision}_bundle")
    media = [family_of(bundle).fit_picture(bundle, KINDS["drawing"](0))]
    rows = list(encoder_types.encode(bundle, media, "float32"))
    [prompt] = encoder_types._prompts(bundle, media, rows)
    said = [Graph(bundle, precision, repack=repack).greedy(Asked(prompt, rows[0]), 3)[1] for repack in (True, False)]
    np.testing.assert_allclose(*said, rtol=0, atol=1e-4 if precision == "fp32" else 0)


def test_features_that_are_no_numbers(fp32_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """A type whose features are not finite is left out, so that `auto` does not take it."""
    real = encoder_types.encode

    def encode(bundle: Bundle, media: Any, name: str) -> encoder_types.Features:
        rows = list(real(bundle, media, "float32"))
        return rows if name == "float32" else [np.full_like(row, np.nan) for row in rows]

    monkeypatch.setattr(encoder_types, "encode", encode)
    monkeypatch.setattr(encoder_types, "TYPES", ("bfloat16",))
    found = measure_types(fp32_bundle, lambda line: None)
    assert found.types == {}
    assert "no numbers" in found.left_out["bfloat16"]


def test_the_field_is_checked_when_a_bundle_is_opened() -> None:
    """A divergence is a finite number that is not negative."""
    assert EncoderType.model_validate({"divergence": 0.0, "positions": 1, "later": "x"}).divergence == 0
    for wrong in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="divergence"):
            EncoderType(divergence=wrong, positions=1)


def test_pictures_are_of_several_kinds() -> None:
    """Every kind is drawn, the same each time, and no two pictures are alike."""
    drawn = [np.asarray(make(index)) for make in KINDS.values() for index in range(4)]
    again = [np.asarray(make(index)) for make in KINDS.values() for index in range(4)]
    assert all((one == other).all() for one, other in zip(drawn, again, strict=True))
    assert len({picture.tobytes() for picture in drawn}) == len(drawn) == 16
    assert all(picture.shape == (256, 320, 3) and picture.std() > 5 for picture in drawn)
