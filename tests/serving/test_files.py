"""Files that settings name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from serving.files import read_regular


def test_a_regular_file_is_read(tmp_path: Path) -> None:
    """Also through a link, as secrets are mounted."""
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    assert read_regular(tmp_path / "link") == b"content"


def test_nothing_else_is_waited_for(tmp_path: Path) -> None:
    """A pipe without another end, a device and a directory are refused at once."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path, tmp_path / "none"):
        with pytest.raises(OSError, match=r"regular file|Is a directory|No such file"):
            read_regular(path)
