"""`triptych key`: what it prints, what it writes, and how it fails."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from gateway.keys.file import read_keys
from gateway.keys.key import Role
from gateway.keys.ring import KeyRing
from triptych_cli import main as cli


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The gateway's file, named by the environment."""
    path = tmp_path / "keys.json"
    monkeypatch.setenv("GATEWAY_KEYS_FILE", str(path))
    return path


def test_a_key_is_made_listed_and_revoked(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The secret is printed once, and finds its key; the file and the list do not have it."""
    limits = "--max-requests 3 --requests-per-minute 60 --tokens-per-minute 9000"
    assert cli.main(["key", "new", "ann", "--tenant", "shop", "--expires", "90d", *limits.split()]) == 0
    secret = capsys.readouterr().out.strip()
    assert cli.main(["key", "new", "root", "--role", "admin"]) == 0
    assert secret.startswith("tpk_")
    assert secret not in file.read_text()
    found = KeyRing(file).find(secret)
    assert found is not None
    assert (found.name, found.tenant, found.role) == ("ann", "shop", Role.USER)
    assert (found.max_requests, found.requests_per_minute, found.tokens_per_minute) == (3, 60, 9000)
    assert found.expires is not None
    assert timedelta(days=89) < found.expires - datetime.now(UTC) < timedelta(days=91)
    capsys.readouterr()

    assert cli.main(["key", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines[1:]] == [["ann", "shop", "user"], ["root", "root", "admin"]]
    assert "requests_per_minute=60" in lines[1]

    assert cli.main(["key", "revoke", "ann"]) == 0
    assert [key.name for key in read_keys(file)] == ["root"]
    assert KeyRing(file).find(secret) is None


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["new", "two words"], "name: use 1 to 64 letters"),
        (["new", "x" * 65], "name: use 1 to 64 letters"),
        (["new", "bob", "--tenant", "a/b"], "tenant: use 1 to 64 letters"),
        (["new", "ann"], "there is a key 'ann' already"),
        (["revoke", "bob"], "there is no key 'bob'"),
    ],
)
def test_what_cannot_be(file: Path, arguments: list[str], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One line on stderr, no secret on stdout, and the file is what it was."""
    cli.main(["key", "new", "ann"])
    before = file.read_bytes()
    capsys.readouterr()
    assert cli.main(["key", *arguments]) == 1
    captured = capsys.readouterr()
    assert part in captured.err
    assert captured.out == ""
    assert file.read_bytes() == before


@pytest.mark.parametrize("when", ["yesterday", "0d", "-1d", "2001-01-01", "d", "99999999999d"])
def test_a_time_that_is_none(file: Path, when: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong usage, with the forms that there are, or that it is past."""
    with pytest.raises(SystemExit) as ended:
        cli.main(["key", "new", "ann", f"--expires={when}"])
    assert ended.value.code == 2
    assert "--expires" in capsys.readouterr().err
    assert not file.exists()


def test_the_file_must_be_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """By the flag or the environment. A file that is none is not overwritten."""
    monkeypatch.delenv("GATEWAY_KEYS_FILE", raising=False)
    with pytest.raises(SystemExit):
        cli.main(["key", "list"])
    assert "--file" in capsys.readouterr().err


def test_a_file_that_is_none_stays(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It may be anything."""
    file.write_text("notes")
    assert cli.main(["key", "new", "ann"]) == 1
    assert "is no file of keys" in capsys.readouterr().err
    assert file.read_text() == "notes"


def test_commands_at_the_same_time(file: Path) -> None:
    """None of them loses what another one wrote."""
    names = [f"k{number}" for number in range(12)]
    parser = cli._parser()  # `main` handles signals, which is for the main thread
    given = [parser.parse_args(["key", "new", name]) for name in names]
    with ThreadPoolExecutor(len(names)) as pool:
        list(pool.map(lambda options: options.command(options), given))
    assert sorted(key.name for key in read_keys(file)) == sorted(names)
