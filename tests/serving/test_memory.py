"""The memory that a process may use."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from serving.memory import usable_memory


@pytest.mark.parametrize(("limit", "expected"), [("max", None), ("1048576", 1 << 20), (str(1 << 60), None)])
def test_a_limit_is_respected(tmp_path: Path, limit: str, expected: int | None) -> None:
    """A container's limit bounds the machine's memory, and never raises it."""
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    whole = usable_memory(tmp_path / "nowhere")
    assert usable_memory(tmp_path / "memory.max") == (expected or whole)
    assert whole == pytest.approx(psutil.virtual_memory().total, rel=0.01)
