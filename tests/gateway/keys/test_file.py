"""The file of keys: what is written is read, nothing else is, and no message repeats a secret."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from gateway.keys.file import KeysFileError, read_keys, write_keys
from gateway.keys.key import PREFIX, Key, hash_of, new_secret


def key(name: str, **more: object) -> Key:
    """A key."""
    return Key.model_validate({"name": name, "sha256": hash_of(name), "tenant": "t", **more})


def test_keys_come_back(tmp_path: Path) -> None:
    """All fields, also the moments; only the owner may read the file, and no other file stays in the folder."""
    path = tmp_path / "keys.json"
    keys = (key("one", role="admin", expires="2030-01-01T00:00:00Z", max_requests=3), key("two", tokens_per_minute=7))
    write_keys(path, keys)
    assert read_keys(path) == keys
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_keeps_its_owner_and_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway that runs as another user can read it afterwards; where that cannot be, nothing is written."""
    path = tmp_path / "keys.json"
    write_keys(path, [key("one")])
    path.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(path, 10001, 10001)
    owner = path.stat().st_uid
    write_keys(path, [])
    assert (path.stat().st_uid, stat.S_IMODE(path.stat().st_mode)) == (owner, 0o640)

    def refuse(*args: int) -> None:
        raise PermissionError

    known = path.stat()
    monkeypatch.setattr(os, "fchown", refuse)
    monkeypatch.setattr(
        Path, "stat", lambda self, **more: os.stat_result((known.st_mode, 1, 1, 1, 4711, 4711, 1, 1, 1, 1))
    )
    with pytest.raises(KeysFileError, match="belongs to user 4711"):
        write_keys(path, [key("two")])
    monkeypatch.undo()
    assert read_keys(path) == ()
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_one(tmp_path: Path) -> None:
    """A mounted secret is a link: what it leads to is replaced."""
    target, link = tmp_path / "real.json", tmp_path / "keys.json"
    write_keys(target, [key("one")])
    link.symlink_to(target)
    write_keys(link, [])
    assert link.is_symlink()
    assert read_keys(target) == ()


def test_secrets_are_long_and_differ() -> None:
    """256 random bits behind the prefix, and the hash is of all of it."""
    secrets = {new_secret() for _ in range(20)}
    assert len(secrets) == len({hash_of(secret) for secret in secrets}) == 20
    assert all(len(secret) == len(PREFIX) + 43 for secret in secrets)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("", "Invalid JSON"),
        ("[]", "object"),
        ('{"keys": [{"name": "a"}]}', "keys.0.sha256"),
        (json.dumps({"keys": [{"name": "a b", "sha256": "0" * 64, "tenant": "t"}]}), "keys.0.name"),
        (json.dumps({"keys": [{"name": "a", "sha256": "tpk_secret", "tenant": "t"}]}), "keys.0.sha256"),
        (json.dumps({"keys": [{"name": "a", "sha256": "0" * 64, "tenant": "t", "rule": "x"}]}), "keys.0.rule"),
        (json.dumps({"keys": [{"name": "a", "sha256": f"{n}" * 64, "tenant": "t"} for n in (0, 1)]}), "one name"),
        (json.dumps({"keys": [{"name": n, "sha256": "0" * 64, "tenant": "t"} for n in "ab"]}), "one sha256"),
        (json.dumps({"keys": [{"name": "a", "sha256": "0" * 64, "tenant": "t", "expires": "2030-01-01"}]}), "expires"),
    ],
)
def test_what_is_no_file_of_keys(tmp_path: Path, content: str, part: str) -> None:
    """The message names the file and the field, and repeats no value: it may be a secret in the wrong place."""
    path = tmp_path / "keys.json"
    path.write_text(content)
    with pytest.raises(KeysFileError) as caught:
        read_keys(path)
    assert str(path) in str(caught.value)
    assert part in str(caught.value)
    assert "tpk_secret" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    """Neither read nor written into a folder that does not exist."""
    with pytest.raises(KeysFileError, match="No such file"):
        read_keys(tmp_path / "keys.json")
    with pytest.raises(KeysFileError, match="No such file"):
        write_keys(tmp_path / "nowhere" / "keys.json", [])
