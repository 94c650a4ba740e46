"""Pages of mapped files are given back, and nothing is lost."""

from __future__ import annotations

import mmap
import re
import sys
from pathlib import Path

import pytest

from decoder_service.engine.onnx.pages import release_pages

SIZE = 64 * mmap.PAGESIZE


def resident(file: Path) -> int:
    """Bytes of a file that are in this process's memory."""
    maps = Path("/proc/self/smaps").read_text(encoding="utf-8")
    (kib,) = re.findall(rf"{re.escape(str(file))}\n(?:.*\n)*?Rss: +(\d+) kB", maps)
    return int(kib) << 10


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells what is mapped")
def test_what_was_read_is_given_back_and_can_be_read_again(tmp_path: Path) -> None:
    """Of that file alone, and only where it cannot have been written to."""
    content = bytes(range(256)) * (SIZE // 256)
    for name in ("weights", "others", "written"):
        (tmp_path / name).write_bytes(content)

    def mapped(name: str, access: int) -> mmap.mmap:
        with (tmp_path / name).open("r+b") as file:
            return mmap.mmap(file.fileno(), 0, access=access)

    weights, others, written = (
        mapped("weights", mmap.ACCESS_READ),
        mapped("others", mmap.ACCESS_READ),
        mapped("written", mmap.ACCESS_COPY),
    )
    written[:4] = b"mine"
    for area in (weights, others, written):
        assert len(bytes(area)) == SIZE
    before = {name: resident(tmp_path / name) for name in ("weights", "others", "written")}
    assert before["weights"] == SIZE
    for name in ("weights", "written"):
        release_pages(tmp_path / name)
    assert resident(tmp_path / "weights") == 0
    assert resident(tmp_path / "others") == before["others"]
    assert written[:4] == b"mine"
    assert bytes(weights) == content
    release_pages(tmp_path / "nowhere")
