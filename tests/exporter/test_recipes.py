"""Which matrices get how many bits."""

from collections import Counter
from pathlib import Path
from typing import Any, get_args

import onnx
import pytest

import exporter
from exporter import RECIPES, ExportError, Recipe, RecipeName
from exporter.families.registry import open_checkpoint
from exporter.recipe import LAYER_KINDS, Bits, Kind, block_of
from serving.bundle import Bundle
from triptych_cli import main as cli

_MIXED = Recipe("mixed", finer=frozenset({"v", "head"}), partly_finer=frozenset({"down"}))


def _bits(bundle: Bundle, attribute: str = "bits") -> dict[str, int]:
    """Bits of each matmul of the INT4 graph, or another attribute, by its node."""
    graph = onnx.load(bundle.graph_path("int4"), load_external_data=False).graph
    return {
        node.name.removesuffix("NBits"): next(a.i for a in node.attribute if a.name == attribute)
        for node in graph.node
        if node.op_type == "MatMulNBits"
    }


def test_the_recipes() -> None:
    """Every name has one, of the same name; small has no 8 bits; each has all that the one before has."""
    assert set(RECIPES) == set(get_args(RecipeName))
    assert all(recipe.name == name for name, recipe in RECIPES.items())
    layers = 36
    finer = [
        {
            (kind, layer)
            for kind in get_args(Kind)
            for layer in range(1 if kind == "head" else layers)
            if recipe.bits(kind, layer, layers) == 8
        }
        for recipe in (RECIPES["small"], RECIPES["balanced"], RECIPES["fine"])
    ]
    assert not finer[0]
    assert finer[0] < finer[1] < finer[2]


def test_about_half_of_the_layers() -> None:
    """The first and the last eighth, and every third between; where there are few layers, some of them."""
    recipe = Recipe("half", partly_finer=frozenset({"down"}))
    chosen = [layer for layer in range(36) if recipe.bits("down", layer, 36) == 8]
    assert chosen == [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 32, 33, 34, 35]
    assert [recipe.bits("down", layer, 6) for layer in range(6)] == [4, 4, 8, 4, 4, 8]
    assert {recipe.bits("up", layer, 36) for layer in range(36)} == {4}


@pytest.mark.parametrize(
    ("bits", "block", "inputs", "expected"),
    [(4, 32, 192, 32), (8, 32, 192, 64), (8, 32, 96, 32), (8, 128, 512, 256), (8, 256, 512, 256), (8, 32, 80, 32)],
)
def test_blocks_of_8_bits_are_twice_as_long(bits: Bits, block: int, inputs: int, expected: int) -> None:
    """Where whole ones fill the matrix, and operators can compute them."""
    assert block_of(bits, block, inputs) == expected


def test_the_graph_is_the_recipes(checkpoint: Path, int4_bundle: Bundle, tmp_path: Path) -> None:
    """Each matmul has the bits that the recipe and the bundle say, and the INT8 graph is the same with any."""
    bundle = exporter.export(checkpoint, tmp_path / "mixed", recipe=_MIXED)
    layers = bundle.text.num_hidden_layers
    found = _bits(bundle)
    assert len(found) == 7 * layers + 1
    told = bundle.decoder.recipe
    assert told is not None
    assert told.name == "mixed"
    assert {kind: len(bits) for kind, bits in told.bits.items()} == {**dict.fromkeys(LAYER_KINDS, layers), "head": 1}
    assert found.pop("/lm_head/MatMul") == told.bits["head"][0] == 8
    for name, bits in found.items():
        _, _, where, _, projection, _ = name.split("/")
        kind: Any = projection.removesuffix("_proj")
        layer = int(where.removeprefix("layers."))
        assert bits == told.bits[kind][layer] == _MIXED.bits(kind, layer, layers), name
    assert set(Counter(found.values())) == {4, 8}
    blocks = _bits(bundle, "block_size")
    assert {(bits, blocks[name]) for name, bits in found.items()} == {(4, 32), (8, 64)}
    int8 = "decoder/int8/model.onnx.data"
    assert bundle.files[int8] == int4_bundle.files[int8]


def test_balanced_is_the_default(int4_bundle: Bundle, fp32_bundle: Bundle) -> None:
    """Of an INT4 bundle; one in float32 has none."""
    assert int4_bundle.decoder.recipe is not None
    assert int4_bundle.decoder.recipe.name == "balanced"
    assert 8 in _bits(int4_bundle).values()
    assert fp32_bundle.decoder.recipe is None


@pytest.mark.parametrize("name", ["small", "fine"])
def test_the_command_line(checkpoint: Path, int4_bundle: Bundle, tmp_path: Path, name: RecipeName) -> None:
    """`--recipe` reaches the export, and the estimate of its size covers it but not many times."""
    words = ["export", str(checkpoint), str(tmp_path / name), "--recipe", name, "--phases", "int4"]
    assert cli.main(words) == 0
    bundle = Bundle.open(tmp_path / name)
    assert bundle.decoder.recipe is not None
    assert bundle.decoder.recipe.name == name
    data = "decoder/int4/model.onnx.data"
    assert (bundle.files[data].size < int4_bundle.files[data].size) == (name == "small")

    def estimate(recipe: RecipeName) -> int:
        return open_checkpoint(checkpoint).estimate(("int4",), block_size=32, recipe=RECIPES[recipe])

    held = sum(info.size for info in bundle.files.values())
    assert held - 2**20 < estimate(name) - 64 * 2**20 < 1.5 * held
    # What a recipe adds is what its matrices take.
    added = bundle.files[data].size - int4_bundle.files[data].size
    assert estimate(name) - estimate("balanced") == pytest.approx(added, rel=0.05)


def test_another_name_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    """In one sentence, and nothing is written."""
    other: Any = "large"
    with pytest.raises(ExportError, match=r"no recipe 'large': use one of small, balanced, fine\."):
        exporter.export(checkpoint, tmp_path / "out", recipe=other)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(SystemExit) as ended:
        cli.main(["export", str(checkpoint), str(tmp_path / "out"), "--recipe", other])
    assert ended.value.code == 2


@pytest.mark.parametrize(
    "flags", [("--recipe", "small"), ("--block-size", "64"), ("--accuracy-level", "1"), ("--no-smoothing",)]
)
def test_flags_of_int4_are_refused_at_fp32(
    flags: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They would have no effect: wrong usage, in one line that names the flag."""
    with pytest.raises(SystemExit) as ended:
        cli.main(["export", "none", str(tmp_path / "out"), "--precision", "fp32", *flags])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"triptych export: argument {flags[0]}: has no meaning at --precision fp32")
