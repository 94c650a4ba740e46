"""The measure of what an encoder's type costs sees a small difference as small and a large one as large."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import quality
from benchmarks.divergence import Reference, ask
from benchmarks.encoder_types import measure_encoder
from benchmarks.kinds import KINDS, draw_kinds
from exporter.divergence import Graph
from serving.bundle import Bundle

QUESTIONS = ["What is it?", "red?"]


def test_features_decide(bundle: Bundle, picture: bytes) -> None:
    """Behind bfloat16's features the float32 graph diverges little; negative control: behind damaged ones, much."""
    plain = ask(bundle, [picture], QUESTIONS)
    rounded = ask(bundle, [picture], QUESTIONS, dtype=torch.bfloat16)
    assert all(np.abs(one.features - other.features).max() > 0 for one, other in zip(plain, rounded, strict=True))
    shifted = [dataclasses.replace(one, features=np.roll(one.features, 1, axis=0)) for one in plain]
    reference, graph = Reference(bundle, plain, steps=3, threads=1), Graph(bundle, "fp32", threads=1)
    same, little, much = (reference.compare(graph, asked) for asked in (plain, rounded, shifted))
    assert same.mean == pytest.approx(0, abs=1e-12)
    assert 1e-9 < little.mean < 0.05
    assert much.mean > 10 * little.mean
    assert {found.positions for found in (same, little, much)} == {2 * 4}


def test_rows(checkpoint: Path, picture: bytes, tmp_path: Path) -> None:
    """Each kind has each graph behind each type, but for the reference; the encoder's type costs less than INT4."""
    rows = list(
        measure_encoder(
            checkpoint,
            tmp_path,
            kinds={"one": [picture], "two": [picture]},
            questions=QUESTIONS,
            types=["bfloat16"],
            steps=2,
            threads=1,
        )
    )
    cells = [("fp32", "bfloat16"), *((graph, type_) for graph in ("int4", "int8") for type_ in ("float32", "bfloat16"))]
    assert [(row.pictures, row.graph, row.encoder) for row in rows] == [
        (kind, *cell) for kind in ("one", "two") for cell in cells
    ]
    assert all(
        (row.cosine == pytest.approx(1)) if row.encoder == "float32" else (0.99 < row.cosine < 1) for row in rows
    )
    cost = {(row.graph, row.encoder): row.divergence.mean for row in rows[: len(cells)]}
    assert cost["fp32", "bfloat16"] < cost["int4", "float32"]


def test_the_command(checkpoint: Path, picture: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It prints a row for each graph and type, as JSON and as a table; outliers cost bfloat16 nothing."""
    (tmp_path / "noise.png").write_bytes(picture)
    words = [str(checkpoint), "--image", str(tmp_path / "noise.png"), "--steps", "2", "--threads", "1"]
    words += ["--encoder", "bfloat16"]
    assert quality.main([*words, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["graph"], row["encoder"]) for row in rows[:2]] == [("fp32", "bfloat16"), ("int4", "float32")]
    assert {row["pictures"] for row in rows} == {"given"}
    assert quality.main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(rows)
    assert len({line.count("|") for line in lines}) == 1
    assert quality.main([*words, "--json", "--outliers", "60"]) == 0
    planted = json.loads(capsys.readouterr().out)
    assert [(row["graph"], row["encoder"]) for row in planted] == [(row["graph"], row["encoder"]) for row in rows]
    assert planted[0]["divergence"]["mean"] < 10 * rows[0]["divergence"]["mean"]


def test_kinds_of_pictures() -> None:
    """Every kind is drawn, the same each time, and no two pictures are alike."""
    drawn = draw_kinds(2)
    assert drawn == draw_kinds(2)
    assert drawn.keys() == KINDS.keys()
    files = [file for kind in drawn.values() for file in kind]
    assert len(set(files)) == 2 * len(KINDS)
    assert all(np.asarray(Image.open(io.BytesIO(file))).std() > 5 for file in files)
