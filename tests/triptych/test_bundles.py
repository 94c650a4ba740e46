"""The demo bundle in the user's cache."""

from __future__ import annotations

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import exporter
from triptych import bundles


def test_two_that_want_the_demo_bundle_make_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both find that it is missing. One makes it; the other waits, and takes that one."""
    made = bundles.demo_bundle()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    both_found_none = threading.Barrier(2)
    looks = threading.local()
    exports: list[Path] = []
    is_made = bundles._is_made

    def look(out: Path) -> bool:
        found = is_made(out)
        if not hasattr(looks, "first"):
            looks.first = found
            both_found_none.wait(60)
        return found

    def export(_: Path, out: Path, **__: Any) -> None:
        exports.append(out)
        shutil.copytree(made, out, dirs_exist_ok=True)

    monkeypatch.setattr(bundles, "_is_made", look)
    monkeypatch.setattr(exporter, "export", export)
    with ThreadPoolExecutor(2) as threads:
        first, second = (threads.submit(bundles.demo_bundle) for _ in range(2))
        assert first.result() == second.result() == exports[0]
    assert len(exports) == 1
