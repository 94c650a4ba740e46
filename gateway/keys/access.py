"""Decides on a call, at both doors: whose it is, whether it may be made, and within which limits."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import unquote

from prometheus_client import Counter

from gateway.keys.key import Role
from gateway.keys.limits import Client, Clients, Limits
from gateway.keys.ring import KeyRing
from serving.errors import Reason, failure

KEY_HEADERS = ("authorization", "x-api-key")
"""HTTP headers, and keys of gRPC's metadata, that a secret comes in."""

FOR_USERS = frozenset({Role.USER, Role.ADMIN})
FOR_METRICS = frozenset({Role.METRICS, Role.ADMIN})
FOR_ADMINS = frozenset({Role.ADMIN})
"""Roles that may make a call."""

REFUSED = Counter("triptych_refused_calls_total", "Calls refused for their key or their client's limits.", ["reason"])


@dataclass(frozen=True)
class Caller:
    """Whose call it is.

    Attributes:
        key: Name of the key; empty without keys.
        tenant: Its tenant; empty without keys.
        limits: Limits of the key, or of the address.
    """

    key: str
    tenant: str
    limits: Limits


@dataclass(frozen=True)
class Admitted:
    """A call that may be made.

    Attributes:
        tenant: Its tenant; empty without keys.
        client: What it counts for.
    """

    tenant: str
    client: Client


class Access:
    """Checks keys and limits. One for both doors, so that a client's calls count together.

    Args:
        ring: The keys; None: everybody may do everything.
        key_limits: Limits of a key that has none of its own.
        address_limits: Limits of an address, without keys.
    """

    def __init__(
        self, ring: KeyRing | None = None, *, key_limits: Limits | None = None, address_limits: Limits | None = None
    ) -> None:
        self._ring = ring
        self._key_limits = key_limits or Limits()
        self._anybody = Caller("", "", address_limits or Limits())
        self._clients = Clients()

    def caller(self, header: Callable[[str], str | None], roles: frozenset[Role]) -> Caller:
        """Whose call it is.

        Args:
            header: The value of a header or of a key of the metadata; None if it is not there.
            roles: Roles that may make the call.

        Raises:
            ServiceError: UNAUTHENTICATED without a valid key, PERMISSION_DENIED if it has another role.
        """
        if self._ring is None:
            return self._anybody
        secret = _secret(header)
        if secret is None:
            message = "this gateway requires an API key: send `Authorization: Bearer tpk_…` or `x-api-key: tpk_…`"
            raise failure(Reason.KEY_MISSING, message)
        key = self._ring.find(secret)
        if key is None:
            raise failure(Reason.KEY_INVALID, "the API key is not valid here: it is unknown, or was revoked")
        if key.expired(datetime.now(UTC)):
            raise failure(Reason.KEY_INVALID, f"the API key {key.name!r} has expired")
        if key.role not in roles:
            allowed = " or ".join(sorted(roles))
            message = f"the API key {key.name!r} has the role {key.role}, and this call needs {allowed}"
            raise failure(Reason.KEY_ROLE, message)
        default = self._key_limits
        limits = Limits(
            key.max_requests or default.max_requests,
            key.requests_per_minute or default.requests_per_minute,
            key.tokens_per_minute or default.tokens_per_minute,
        )
        return Caller(key.name, key.tenant, limits)

    def client(self, caller: Caller, host: str) -> Client:
        """The client that a call counts for: its key, or without keys its address.

        Args:
            caller: Whose call it is.
            host: Host of the other end of the connection, from `host_of_peer` over gRPC.
        """
        return self._clients.get(caller.key or f"@{_network(host)}", caller.limits)


def _secret(header: Callable[[str], str | None]) -> str | None:
    """The secret of a call: of `Authorization: Bearer`, else of `x-api-key`; None if there is neither."""
    scheme, _, credentials = (header("authorization") or "").strip().partition(" ")
    if scheme.lower() == "bearer" and credentials.strip():
        return credentials.strip()
    return (header("x-api-key") or "").strip() or None


def host_of_peer(peer: str) -> str:
    """The host of gRPC's name of a peer, as in `ipv4:127.0.0.1:5000` and `ipv6:%5B::1%5D:5000`."""
    kind, _, address = unquote(peer).partition(":")
    return address.rpartition(":")[0].strip("[]") if kind in ("ipv4", "ipv6") else peer


def _network(host: str) -> str:
    """What counts as one address: an IPv4 address, or the /64 of an IPv6 address, which one customer has whole."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)
