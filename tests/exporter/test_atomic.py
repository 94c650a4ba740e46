"""A bundle is whole or not there."""

import contextlib
import errno
import importlib
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

import exporter
from exporter import ExportError
from exporter.writer import staged
from serving.bundle import Bundle

STAGES = (
    "families.shared.family.write_vision",
    "families.shared.family.write_decoder",
    "families.shared.family.write_embedding",
    "pipeline.write_manifest",
    "pipeline.measure_apart",
)
Usage = namedtuple("Usage", "total used free")


def _fail_after(stage: str, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the named stage write what it writes, then fail."""
    module, _, name = f"exporter.{stage}".rpartition(".")
    real = getattr(importlib.import_module(module), name)

    def failing(*args: Any, **kwargs: Any) -> None:
        real(*args, **kwargs)
        raise error

    monkeypatch.setattr(f"exporter.{stage}", failing)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("bug")], ids=["interrupt", "bug"])
def test_failure_leaves_nothing(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, error: BaseException
) -> None:
    """Whichever stage fails, the target, its temporary sibling and parents made for it are gone."""
    _fail_after(stage, error, monkeypatch)
    with pytest.raises(type(error)):
        exporter.export(checkpoint, tmp_path / "new" / "deeper" / "out")
    assert list(tmp_path.iterdir()) == []


def test_failure_keeps_the_old_bundle(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed replacement leaves the bundle that was there, byte for byte."""
    old = exporter.export(checkpoint, tmp_path / "out")
    _fail_after("pipeline.write_manifest", KeyboardInterrupt(), monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        exporter.export(checkpoint, tmp_path / "out", precision="fp32", force=True)
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]
    assert Bundle.open(tmp_path / "out", verify=True) == old


@pytest.mark.parametrize("stage", STAGES)
def test_disk_becomes_full(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    """A full disk is one sentence, and what was written is removed."""
    _fail_after(stage, OSError(errno.ENOSPC, "No space left on device"), monkeypatch)
    with pytest.raises(ExportError, match=r"^The disk became full while .*out was written.*\.$"):
        exporter.export(checkpoint, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_disk_too_small_is_seen_before_the_work(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too little room is reported before anything is written."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(2**30, 2**30 - 1000, 1000))
    with pytest.raises(ExportError, match=r"needs about .* GiB and .* free"):
        exporter.export(checkpoint, tmp_path / "new" / "out")
    assert list(tmp_path.iterdir()) == []


def test_estimate_covers_the_bundle(int4_bundle: Bundle, fp32_bundle: Bundle, checkpoint: Path, tmp_path: Path) -> None:
    """The room asked for is enough and not many times too much."""
    from exporter.families.registry import open_checkpoint

    margin = 64 * 2**20
    small = exporter.export(checkpoint, tmp_path / "small", phases=["int4"])
    for bundle in (int4_bundle, fp32_bundle, small):
        given = {"block_size": 32, "recipe": exporter.RECIPES["balanced"]}
        needed = open_checkpoint(checkpoint).estimate(tuple(bundle.decoder.graphs), **given) - margin
        held = sum(info.size for info in bundle.files.values())
        assert held - 2**20 < needed < 1.5 * held


def test_unwritable_target(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory that cannot be made is one sentence too."""

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(ExportError, match=r"could not be written, and nothing was kept: Permission denied"):
        exporter.export(checkpoint, tmp_path / "out")


def test_what_a_killed_export_left_is_swept(checkpoint: Path, tmp_path: Path) -> None:
    """The next export removes what nobody has locked; a running export's directory and other files stay."""
    left = tmp_path / ".out.01234567.partial"
    (left / "vision").mkdir(parents=True)
    kept = [tmp_path / ".other.01234567.partial", tmp_path / ".out.notes"]
    kept[0].mkdir()
    kept[1].write_text("mine")
    with contextlib.suppress(KeyboardInterrupt), staged(tmp_path / "out") as running:
        assert not left.exists()
        exporter.export(checkpoint, tmp_path / "out", phases=["int4"])
        assert sorted(tmp_path.iterdir()) == sorted([*kept, running, tmp_path / "out"])
        raise KeyboardInterrupt
    (tmp_path / ".out.01234567.old").mkdir()  # what a replacement leaves that is killed after it took the name
    exporter.export(checkpoint, tmp_path / "out", phases=["int4"], force=True)
    assert sorted(tmp_path.iterdir()) == sorted([*kept, tmp_path / "out"])


def test_the_old_bundle_is_not_swept_before_there_is_a_new_one(checkpoint: Path, tmp_path: Path) -> None:
    """An export killed between the two renames of a replacement leaves the old bundle under another name: it stays."""
    old = tmp_path / ".out.01234567.old"
    old.mkdir()
    exporter.export(checkpoint, tmp_path / "out", phases=["int4"])
    assert old.is_dir()
