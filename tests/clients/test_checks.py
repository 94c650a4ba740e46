"""What tests/clients/run makes of clients.toml and of what the scripts print."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from tests.clients import checks
from tests.clients.checks import CHECKS, SCRIPTS, Client, InstallError, Outcome, environment, outcome, table


def printed(**results: str) -> str:
    """The output of a script."""
    lines = [{"version": "1.2"}, *({"check": name, "ok": not why, "detail": why} for name, why in results.items())]
    return "\n".join(["a line of the client's own", *map(json.dumps, lines)])


def test_every_client_has_its_script_and_exact_versions() -> None:
    """Every script of a client is in use, and no package is installed in a version that nobody looked at."""
    clients = checks.clients()
    shared = {"common.py", "common.mjs", "shapes.py"}
    assert {client.script for client in clients} | shared == {path.name for path in SCRIPTS.glob("*.*")}
    for client in clients:
        assert all(re.fullmatch(r"[\w.\[\]-]+==\d[\w.]*", package) for package in client.pip), client.name
        assert all(re.fullmatch(r"(@[\w-]+/)?[\w.-]+@\d[\w.-]*", package) for package in client.npm), client.name


def test_a_client_passes_only_with_every_check() -> None:
    """All must have been made and be ok; a script that breaks off fails those that it did not come to."""
    whole = outcome("one", printed(**dict.fromkeys(CHECKS, "")))
    assert (whole.passed, whole.version) == (True, "1.2")
    assert not outcome("one", printed(**{**dict.fromkeys(CHECKS, ""), "tools": "no\n call"})).passed
    cut = outcome("one", printed(image="")).missing("ended")
    assert not cut.passed
    assert cut.results == {"image": "", "schema": "ended", "tools": "ended", "cancel": "ended"}


def test_the_table_has_a_row_for_each_client_and_the_reasons_below() -> None:
    """A check that failed is marked, and its reason is told in one line."""
    text = table([outcome("one", printed(image="", schema="no\n JSON", tools="", cancel="")), Outcome("two")])
    assert [line.split() for line in text.splitlines()] == [
        ["client", "version", *CHECKS],
        ["one", "1.2", "ok", "FAILED", "ok", "ok"],
        ["two", *["FAILED"] * len(CHECKS)],
        [],
        ["one,", "schema:", "no", "JSON"],
    ]


def test_an_environment_that_cannot_be_made_is_no_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason is told; what was half made is made anew the next time."""
    client = Client("none", "none.py", npm=["none@1"])
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InstallError, match="npm is not installed"):
        environment(client, tmp_path)
    monkeypatch.setattr(checks, "_install", lambda command, folder: None)
    folder = environment(client, tmp_path)
    assert (folder / "finished").exists()
    assert environment(client, tmp_path) == folder
    assert environment(Client("none", "none.py", npm=["none@2"]), tmp_path) != folder


def test_without_a_package_index_the_last_line_of_pip_is_the_reason(tmp_path: Path) -> None:
    """As for every command that fails."""
    with pytest.raises(InstallError, match=r"python.*: no such thing$"):
        checks._install([sys.executable, "-c", "import sys; sys.exit('first\\nno such thing')"], tmp_path)
