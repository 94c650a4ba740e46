"""docs/features.md claims nothing of ours without a test, and shows the clients that tests/clients/run has."""

from __future__ import annotations

import re

from tests.clients import checks
from tests.docs.pages import ROOT

PAGE = (ROOT / "docs" / "features.md").read_text(encoding="utf-8")
_TEST = re.compile(r"\[test\]\(\.\./(tests/[\w/]+\.py)\)")


def rows(heading: str) -> list[list[str]]:
    """The cells of the table under a heading, without its head."""
    section = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"][
        2:
    ]


def test_each_feature_of_ours_is_linked_to_a_test() -> None:
    """A file with tests in it; that the file exists is not enough."""
    cells = [row[1] for heading in ("Beside others", "What else is tested") for row in rows(heading)]
    assert len(cells) > 20
    for cell in cells:
        if cell.startswith("no"):
            continue
        linked = _TEST.search(cell)
        assert linked is not None, cell
        assert re.search(r"^ *(async )?def test_", (ROOT / linked[1]).read_text(encoding="utf-8"), re.MULTILINE), cell


def test_the_clients_are_those_that_are_checked() -> None:
    """In the same order, in the versions of clients.toml."""
    shown = [row[1] for row in rows("Clients")]
    packages = [(client.pip or client.npm or ["==its requests, replayed"])[0] for client in checks.clients()]
    assert shown == [re.split("==|(?<!^)@", package)[-1] for package in packages]
