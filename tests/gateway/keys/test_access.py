"""Whose a call is, from its headers and its address."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from gateway.cache_scope import cache_scope
from gateway.keys.access import FOR_ADMINS, FOR_METRICS, FOR_USERS, Access, Caller, host_of_peer
from gateway.keys.file import write_keys
from gateway.keys.key import Key, hash_of
from gateway.keys.limits import Limits
from gateway.keys.ring import KeyRing
from serving.errors import Code, ServiceError
from serving.transport import is_loopback


def access(folder: Path, **more: Any) -> Access:
    """Access with a key for each role, and one that has expired; secrets are names."""
    path = folder / "keys.json"
    over = datetime.now(UTC) - timedelta(seconds=1)
    keys = [Key(name=role, sha256=hash_of(role), tenant="t", role=role) for role in ("user", "metrics", "admin")]
    write_keys(path, [*keys, Key(name="old", sha256=hash_of("old"), tenant="t", expires=over)])
    return Access(KeyRing(path), **more)


def refused(access: Access, headers: dict[str, str], roles: Any = FOR_USERS) -> ServiceError:
    """How a call is refused."""
    with pytest.raises(ServiceError) as caught:
        access.caller(headers.get, roles)
    return caught.value


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer user"},
        {"authorization": "bearer   user "},
        {"x-api-key": "user"},
        {"authorization": "Basic dXNlcg==", "x-api-key": "user"},
        {"authorization": "Bearer user", "x-api-key": "admin"},
    ],
)
def test_where_a_key_is_read(tmp_path: Path, headers: dict[str, str]) -> None:
    """`Authorization: Bearer`, or else `x-api-key`."""
    assert access(tmp_path).caller(headers.get, FOR_USERS).key == "user"


@pytest.mark.parametrize("headers", [{}, {"authorization": ""}, {"authorization": "Bearer "}, {"x-api-key": " "}])
def test_no_key(tmp_path: Path, headers: dict[str, str]) -> None:
    """Nothing, in several forms."""
    error = refused(access(tmp_path), headers)
    assert (error.code, error.reason) == (Code.UNAUTHENTICATED, "KEY_MISSING")


@pytest.mark.parametrize("secret", ["nobody", "old", hash_of("user"), "user, admin", "Bearer user"])
def test_a_wrong_key(tmp_path: Path, secret: str) -> None:
    """Unknown or expired; the message does not repeat it."""
    error = refused(access(tmp_path), {"authorization": f"Bearer {secret}"})
    assert (error.code, error.reason) == (Code.UNAUTHENTICATED, "KEY_INVALID")
    assert secret not in error.message.replace("'old' has expired", "")


def test_roles(tmp_path: Path) -> None:
    """Each role may do its own, and an admin everything."""
    checked = access(tmp_path)
    may = {
        role: [role in roles and checked.caller({"x-api-key": role}.get, roles).key == role for roles in kinds]
        for role in ("user", "metrics", "admin")
        for kinds in [(FOR_USERS, FOR_METRICS, FOR_ADMINS)]
    }
    assert may == {
        "user": [True, False, False],
        "metrics": [False, True, False],
        "admin": [True, True, True],
    }
    for role, roles in (("metrics", FOR_USERS), ("user", FOR_METRICS), ("user", FOR_ADMINS), ("metrics", FOR_ADMINS)):
        error = refused(checked, {"x-api-key": role}, roles)
        assert (error.code, error.reason) == (Code.PERMISSION_DENIED, "KEY_ROLE")


def test_a_keys_own_limits_come_first(tmp_path: Path) -> None:
    """What it does not limit itself is limited by the settings."""
    path = tmp_path / "keys.json"
    write_keys(path, [Key(name="a", sha256=hash_of("a"), tenant="t", max_requests=9)])
    caller = Access(KeyRing(path), key_limits=Limits(5, 6)).caller({"x-api-key": "a"}.get, FOR_USERS)
    assert caller == Caller("a", "t", Limits(9, 6))


def test_without_keys_the_address_counts() -> None:
    """An IPv4 address, however it is written, or the /64 of an IPv6 address."""
    open_to_all = Access(address_limits=Limits(1))
    caller = open_to_all.caller({}.get, FOR_ADMINS)
    assert caller == Caller("", "", Limits(1))

    def same(one: str, other: str) -> bool:
        return open_to_all.client(caller, one) is open_to_all.client(caller, other)

    assert same("10.0.0.1", "::ffff:10.0.0.1")
    assert same("2001:db8::1", "2001:db8::ffff")
    assert not same("10.0.0.1", "10.0.0.2")
    assert not same("2001:db8::1", "2001:db8:0:1::1")
    assert same("fe80::1%eth0", "fe80::2")


@pytest.mark.parametrize(
    ("peer", "host"),
    [
        ("ipv4:127.0.0.1:5000", "127.0.0.1"),
        ("ipv6:%5B::1%5D:5000", "::1"),
        ("ipv6:[2001:db8::1]:5000", "2001:db8::1"),
        ("unix:/tmp/socket", "unix:/tmp/socket"),
    ],
)
def test_hosts_of_peers(peer: str, host: str) -> None:
    """The port is not part of it."""
    assert host_of_peer(peer) == host


def test_loopback() -> None:
    """Addresses that only this machine reaches."""
    assert all(map(is_loopback, ("127.0.0.1", "127.1.2.3", "localhost", "::1", "[::1]")))
    assert not any(map(is_loopback, ("0.0.0.0", "[::]", "10.0.0.1", "gateway")))  # noqa: S104


def test_scopes_differ_by_tenant_and_salt() -> None:
    """Empty without either; equal only if both are."""
    assert cache_scope("") == ""
    given = [("a", ""), ("", "a"), ("a", "a"), ("aa", ""), ("", "aa"), ("a", "b"), ("1", "a"), ("", "1:a")]
    assert len({cache_scope(*one) for one in given}) == len(given)
    assert cache_scope("a", "b") == cache_scope("a", "b")
