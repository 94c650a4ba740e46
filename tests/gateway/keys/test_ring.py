"""The keys in force follow the file, and outlive a broken one."""

from __future__ import annotations

from pathlib import Path

import structlog

from gateway.keys.file import write_keys
from gateway.keys.key import Key, hash_of
from gateway.keys.ring import KeyRing


def key(name: str) -> Key:
    """A key whose secret is its name."""
    return Key(name=name, sha256=hash_of(name), tenant=name)


def found(ring: KeyRing, *secrets: str) -> list[str | None]:
    """Names of the keys with these secrets."""
    return [None if (known := ring.find(secret)) is None else known.name for secret in secrets]


def test_it_follows_the_file(tmp_path: Path) -> None:
    """A key that is added is valid for the next request, and one that is revoked is not."""
    path = tmp_path / "keys.json"
    write_keys(path, [key("a")])
    ring = KeyRing(path)
    assert found(ring, "a", "b", "") == ["a", None, None]
    write_keys(path, [key("a"), key("b")])
    assert found(ring, "a", "b") == ["a", "b"]
    write_keys(path, [key("b")])
    assert found(ring, "a", "b") == [None, "b"]
    write_keys(path, [])
    assert found(ring, "a", "b") == [None, None]


def test_a_broken_file_changes_nothing(tmp_path: Path) -> None:
    """The last good keys stay, the log says so once for each version of the file, and a mended one is read."""
    path = tmp_path / "keys.json"
    write_keys(path, [key("a")])
    ring = KeyRing(path)
    with structlog.testing.capture_logs() as logs:
        path.write_text("{")
        assert found(ring, "a", "a") == ["a", "a"]
        path.unlink()
        assert found(ring, "a", "a") == ["a", "a"]
    assert [line["log_level"] for line in logs] == ["error", "error"]
    write_keys(path, [key("b")])
    assert found(ring, "a", "b") == [None, "b"]


def test_only_a_secret_finds_its_key(tmp_path: Path) -> None:
    """Not the hash that is in the file, nor a part of the secret, nor what is no secret at all."""
    path = tmp_path / "keys.json"
    write_keys(path, [key("secret")])
    ring = KeyRing(path)
    assert (
        found(ring, "secret", hash_of("secret"), "secre", "secret ", "sécret", "s" * 10_000) == ["secret"] + [None] * 5
    )
