"""The wire: generated code is fresh, and every message and field is documented."""

from __future__ import annotations

import itertools
import re

import pytest

from tests.drift import ROOT, stale

PROTOS = sorted((ROOT / "protos" / "vlm" / "v1").glob("*.proto"))
DECLARATION = re.compile(
    r"^\s*(message|enum|service|rpc)\s+\w+|^\s*(optional |repeated |map<.*> )?[\w.]+\s+\w+\s*=\s*\d+;"
)


def test_generated_code_is_fresh() -> None:
    """What is committed is what the protos generate."""
    assert stale() == []


@pytest.mark.parametrize("path", PROTOS, ids=lambda path: path.name)
def test_everything_is_documented(path: object) -> None:
    """Each message, enum, service, rpc and field has a comment above it."""
    lines = path.read_text().splitlines()  # type: ignore[attr-defined]
    bare = [
        line.strip()
        for before, line in itertools.pairwise(lines)
        if DECLARATION.match(line)
        and not before.strip().startswith("//")
        and not line.startswith(("syntax", "package"))
    ]
    assert bare == []
