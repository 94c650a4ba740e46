"""A checkpoint in the words of transformers 4.57."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.errors import BenchError
from benchmarks.peers import dialect
from tests.checkpoints import make_checkpoint


def test_the_older_dialect_is_that_of_the_published_files(tmp_path: Path) -> None:
    """A checkpoint written by transformers 5 becomes what one in the older dialect is; that one stays as it is."""
    newer, older = (make_checkpoint(tmp_path / name, dialect=name) for name in ("v5", "v4"))

    def config(checkpoint: Path) -> dict[str, object]:
        read = json.loads((checkpoint / "config.json").read_text())
        del read["transformers_version"]
        return dict(read)

    made = dialect.make(newer, tmp_path / "made")
    assert config(newer) != config(older)
    assert config(made) == config(older) == config(dialect.make(older, tmp_path / "again"))
    assert {path.name for path in made.iterdir()} == {path.name for path in newer.iterdir()}
    assert (made / "model.safetensors").read_bytes() == (newer / "model.safetensors").read_bytes()


def test_what_cannot_be_rewritten(tmp_path: Path) -> None:
    """A directory that is there, or is no such checkpoint, is refused in a sentence."""
    with pytest.raises(BenchError, match="exists"):
        dialect.make(tmp_path, tmp_path)
    with pytest.raises(BenchError, match="is not a Qwen3-VL checkpoint"):
        dialect.make(tmp_path, tmp_path / "made")
