"""Which graphs a bundle gets."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import exporter
from exporter import ExportError
from serving.bundle import Bundle, BundleError
from triptych_cli import main as cli


def _graphs(root: Path) -> set[str]:
    return {path.parent.name for path in (root / "decoder").glob("*/model.onnx")}


def test_the_small_footprint(int4_bundle: Bundle, checkpoint: Path, tmp_path: Path) -> None:
    """With INT4 alone there is no trace of INT8, and everything else is the same."""
    small = exporter.export(checkpoint, tmp_path / "small", phases=["int4"])
    assert small.decoder.graphs == {"int4": "decoder/int4/model.onnx"}
    assert _graphs(small.root) == {"int4"}
    assert small.files.items() <= int4_bundle.files.items()
    with pytest.raises(BundleError, match=r"has no int8 graph \(it has int4\)"):
        small.graph_path("int8")


@pytest.mark.parametrize("phases", [None, ["int4", "int8"], ["int8", "int4"]])
def test_both_is_the_default(
    int4_bundle: Bundle, checkpoint: Path, tmp_path: Path, phases: Sequence[exporter.Phase] | None
) -> None:
    """Both graphs are written, the bundle's own first, in whatever order they were named."""
    bundle = exporter.export(checkpoint, tmp_path / "out", phases=phases)
    assert list(bundle.decoder.graphs) == ["int4", "int8"]
    assert bundle.files == int4_bundle.files
    assert bundle.graph_path("int8").is_file()
    assert Bundle.open(bundle.root, verify=True) == bundle


def test_fp32_has_none(fp32_bundle: Bundle) -> None:
    """An fp32 bundle has its own graph alone."""
    assert list(fp32_bundle.decoder.graphs) == ["fp32"]
    assert _graphs(fp32_bundle.root) == {"fp32"}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"phases": []}, r"no phases ''"),
        ({"phases": ["int8"]}, r"no phases 'int8'"),
        ({"phases": ["int4", "int2"]}, r"no phases 'int2,int4'"),
        ({"phases": ["int4"], "precision": "fp32"}, r"fp32 bundle has no phases"),
    ],
)
def test_other_phases_are_refused(checkpoint: Path, tmp_path: Path, options: dict[str, Any], sentence: str) -> None:
    """INT4 cannot be left out, nothing else can be added, and fp32 takes none; nothing is written."""
    with pytest.raises(ExportError, match=sentence):
        exporter.export(checkpoint, tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_without_its_int8_graph_is_incomplete(checkpoint: Path, tmp_path: Path) -> None:
    """A file of the INT8 graph that is missing is named when the bundle is opened."""
    bundle = exporter.export(checkpoint, tmp_path / "out")
    (bundle.root / "decoder" / "int8" / "model.onnx.data").unlink()
    with pytest.raises(BundleError, match=r"decoder/int8/model\.onnx\.data is missing"):
        Bundle.open(bundle.root)


def test_the_command_line(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--phases int4` and `--no-smoothing` reach the export; without them there are two graphs, smoothed."""
    small, usual = tmp_path / "small", tmp_path / "usual"
    assert cli.main(["export", str(checkpoint), str(small), "--phases", "int4", "--no-smoothing"]) == 0
    assert cli.main(["export", str(checkpoint), str(usual)]) == 0
    assert capsys.readouterr().out.splitlines() == [f"exported Tiny-Qwen3-VL to {root}" for root in (small, usual)]
    assert (list(Bundle.open(small).decoder.graphs), Bundle.open(small).decoder.smoothed) == (["int4"], False)
    assert (list(Bundle.open(usual).decoder.graphs), Bundle.open(usual).decoder.smoothed) == (["int4", "int8"], True)


@pytest.mark.parametrize("phases", ["int8", "int4,int4", "int4,fp32", "", "both"])
def test_wrong_words_on_the_command_line(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], phases: str
) -> None:
    """Anything but int4 and int4,int8 is wrong usage: exit code 2, and the sentence says what there is."""
    with pytest.raises(SystemExit) as ended:
        cli.main(["export", str(checkpoint), str(tmp_path / "out"), "--phases", phases])
    assert ended.value.code == 2
    assert "must be int4 or int4,int8" in capsys.readouterr().err


def test_phases_of_fp32_on_the_command_line(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Phases of an fp32 bundle are one sentence and exit code 1."""
    words = ["export", str(checkpoint), str(tmp_path / "out"), "--precision", "fp32", "--phases", "int4"]
    assert cli.main(words) == 1
    assert capsys.readouterr().err == "triptych: An fp32 bundle has no phases: leave them out, or export at int4.\n"
