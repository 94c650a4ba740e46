"""The table of recipes: what is compared, and how many bytes are computed."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

import exporter
from benchmarks import recipes
from benchmarks.checkpoint import SHAPES, make
from exporter import RECIPES


def test_bytes_are_the_graphs(tmp_path: Path) -> None:
    """What is computed for a shape is what its exported matrices and scales take."""
    recipe = recipes.recipe_of("v+down/2+head")
    checkpoint = make(SHAPES["tiny"], tmp_path / "tiny")
    bundle = exporter.export(checkpoint, tmp_path / "bundle", recipe=recipe, phases=["int4"], measure=False)
    graph = onnx.load(bundle.graph_path("int4"), load_external_data=False).graph
    read = {name for node in graph.node if node.op_type == "MatMulNBits" for name in node.input}
    held = sum(
        int(entry.value)
        for tensor in graph.initializer
        if tensor.name in read
        for entry in tensor.external_data
        if entry.key == "length"
    )
    assert recipes.graph_bytes("tiny", recipe) == held
    assert recipes.graph_bytes("tiny", RECIPES["small"]) < held


def test_the_command(checkpoint: Path, picture: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A row for each recipe, plain and with outliers, as JSON and as a table; more bits diverge less."""
    (tmp_path / "noise.png").write_bytes(picture)
    words = [str(checkpoint), "--image", str(tmp_path / "noise.png"), "--steps", "2", "--threads", "1"]
    kinds = "+".join((*exporter.recipe.LAYER_KINDS, "head"))
    words += ["--recipe", "small", "--recipe", kinds]
    assert recipes.main([*words, "--place", "down", "--ratio", "100", "--orders", "2", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["recipe"], row["checkpoint"]) for row in rows] == [
        (recipe, name) for recipe in ("small", kinds) for name in ("plain", "down 100")
    ]
    means = [sum(row["divergences"]) / 2 for row in rows]
    assert means[2] < means[0]
    assert means[3] < means[1]
    assert recipes.main([*words, "--plain"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 2
    assert len({line.count("|") for line in lines}) == 1
