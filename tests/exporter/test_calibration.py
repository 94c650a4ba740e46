"""Calibration data is read, laid out and written into the bundle; bad data is one sentence that names the file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import exporter
from exporter import pipeline
from exporter.calibration import built_in, encode, read_directory
from exporter.calibration.data import PROMPTS
from exporter.calibration.tokens import MOST_TOKENS
from exporter.progress import Progress
from serving.bundle import Bundle
from triptych_cli import main as cli


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two pictures."""
    made = tmp_path / "mine"
    made.mkdir()
    for name, colour in (("b.png", "red"), ("a.jpg", "blue")):
        Image.new("RGB", (200, 100), colour).save(made / name)
    return made


def _write(folder: Path, *lines: object) -> None:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder / PROMPTS).write_text(text, encoding="utf-8")


def test_the_package_has_data() -> None:
    """It has pictures and texts in turns, is the same each time, and small."""
    data = built_in()
    assert data.digest == built_in().digest
    assert [example.picture is not None for example in data.examples[:4]] == [True, False, True, False]
    assert all(example.prompt and example.answer for example in data.examples)
    sizes = [path.stat().st_size for path in Path(exporter.__file__).with_name("calibration").glob("*.jsonl")]
    assert 0 < sum(sizes) < 300_000


def test_pictures_alone_are_enough(folder: Path) -> None:
    """Each picture of a directory, in the order of names, is asked a question of the package."""
    data = read_directory(folder)
    assert data.name == "mine"
    pictures = [example.picture for example in data.examples]
    assert [picture.getpixel((50, 50))[2] > 200 for picture in pictures if picture is not None] == [True, False]
    assert all(example.prompt for example in data.examples)


def test_prompts_are_read(folder: Path) -> None:
    """With a file of prompts, those are asked and nothing else; the digest tells data apart."""
    _write(folder, {"prompt": "Hello?"}, "", {"prompt": "What is it?", "image": "b.png", "answer": "Red."})
    first, second = read_directory(folder).examples
    assert (first.prompt, first.answer, first.picture) == ("Hello?", "", None)
    assert (second.prompt, second.answer) == ("What is it?", "Red.")
    assert second.picture is not None
    before = read_directory(folder).digest
    Image.new("RGB", (200, 100), "green").save(folder / "b.png")
    assert read_directory(folder).digest != before


def test_large_pictures_are_made_smaller(folder: Path) -> None:
    """A picture takes 256 tokens at most, so that many fit."""
    Image.new("RGB", (3000, 1500)).save(folder / "a.jpg")
    assert [example.picture.size for example in read_directory(folder).examples if example.picture] == [
        (512, 256),
        (200, 100),
    ]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "Line 2 of"),
        ([], "Line 2 of"),
        ({"image": "b.png"}, "Line 2 of"),
        ({"prompt": 3}, "Line 2 of"),
        ({"prompt": "?", "picture": "b.png"}, "Line 2 of"),
        ({"prompt": "?", "image": "c.png"}, "c.png cannot be read (No such file or directory)"),
        ({"prompt": "?", "image": "broken.png"}, "broken.png"),
    ],
)
def test_bad_prompts_are_one_sentence(folder: Path, line: object, said: str) -> None:
    """The sentence names the file, its line or the picture."""
    (folder / "broken.png").write_bytes(b"no picture")
    _write(folder, {"prompt": "fine"}, line)
    with pytest.raises(exporter.ExportError) as caught:
        read_directory(folder)
    assert said in str(caught.value)
    assert str(folder) in str(caught.value)


def test_bad_directories_are_one_sentence(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A directory that is missing or holds nothing is found before anything is written."""
    (tmp_path / "empty").mkdir()
    for name, said in (("missing", "There is no directory"), ("empty", "holds nothing to calibrate on")):
        out = tmp_path / "out"
        assert cli.main(["export", str(checkpoint), str(out), "--calibrate", str(tmp_path / name)]) == 1
        stderr = capsys.readouterr().err
        assert said in stderr
        assert stderr.count("\n") == 1
        assert not out.exists()
    with pytest.raises(exporter.ExportError, match="nothing to calibrate: leave it out"):
        exporter.export(checkpoint, tmp_path / "fp32", precision="fp32", calibrate=True)


def test_examples_are_laid_out(int4_bundle: Bundle, folder: Path) -> None:
    """A picture's tokens are marked and have its features; all examples together are bounded."""
    quiet = Progress(enabled=False)
    _write(folder, {"prompt": "What is it?", "image": "b.png", "answer": "Red."}, {"prompt": "words " * 3000})
    shown, cut = encode(int4_bundle, read_directory(folder), progress=quiet)
    assert shown.is_media.sum() == len(shown.features) == 6 * 3
    assert shown.features.shape[1] == int4_bundle.feature_width
    assert shown.ids.shape == shown.is_media.shape == shown.positions.shape[1:]
    assert (shown.ids[shown.is_media] == int4_bundle.media_tokens.image).all()
    assert np.ptp(shown.features) > 0
    assert len(cut.ids) == 1024
    _write(folder, *[{"prompt": "words " * 3000}] * 9)
    assert (
        sum(len(example.ids) for example in encode(int4_bundle, read_directory(folder), progress=quiet)) == MOST_TOKENS
    )


def test_two_exports_are_equal_and_say_what_they_saw(
    checkpoint: Path, int4_bundle: Bundle, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The same checkpoint and data give the same bytes, other data others; the bundle names the data."""
    one, two = (
        exporter.export(checkpoint, tmp_path / name, calibrate=folder, progress=True) for name in ("one", "two")
    )
    assert one.files == two.files
    assert "calibration" in capfd.readouterr().err
    assert one.decoder.calibration is not None
    assert (one.decoder.calibration.data, one.decoder.calibration.sha256) == ("mine", read_directory(folder).digest)
    assert Bundle.open(one.root, verify=True) == one
    assert int4_bundle.decoder.calibration is None
    graphs = [f"decoder/{graph}/model.onnx.data" for graph in ("int4", "int8")]
    assert one.files[graphs[0]].sha256 != int4_bundle.files[graphs[0]].sha256
    assert {name for name in one.files if one.files[name] != int4_bundle.files[name]}.issubset(
        {*graphs, *(name.removesuffix(".data") for name in graphs)}
    )


def test_it_is_the_default_and_can_be_left_out(
    checkpoint: Path, int4_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An INT4 export calibrates on the package's data unless it is told not to."""
    monkeypatch.setattr(pipeline, "CALIBRATED", True)
    assert pipeline._calibration_data("fp32", None) is None
    data = pipeline._calibration_data("int4", None)
    assert data is not None
    assert data.name == "built-in"
    assert cli.main(["export", str(checkpoint), str(tmp_path / "plain"), "--no-calibrate", "--no-measuring"]) == 0
    assert Bundle.open(tmp_path / "plain").files == int4_bundle.files
