"""The addresses of a tier: a fixed list, or all addresses behind a DNS name, read again and again."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog

log = structlog.get_logger()

Resolve = Callable[[str, int], Awaitable[list[str]]]
"""Reads the addresses of a host, as `IP:port`; raises OSError if it cannot."""

RESOLVE_SECONDS = 2.0
"""Seconds between two readings of a DNS name."""

_DNS = "dns:"
_LISTS = ("ipv4:", "ipv6:")


class TargetError(ValueError):
    """A target has no known form; the message is one sentence."""


@dataclass(frozen=True)
class Target:
    """Where a tier is.

    Attributes:
        addresses: Fixed addresses; empty for a DNS name.
        host: The DNS name, whose addresses are all replicas.
        port: The port at all of them.
    """

    addresses: tuple[str, ...] = ()
    host: str = ""
    port: int = 0


def parse_target(text: str) -> Target:
    """Read a target.

    Args:
        text: `host:port`; several with commas between them; gRPC's lists `ipv4:…` and `ipv6:…`; or `dns:///name:port`
            for all addresses of a name. A name in a list is one replica.

    Raises:
        TargetError: It has none of these forms.
    """
    if text.startswith(_DNS):
        host, port = _host_port(text.removeprefix(_DNS).rpartition("/")[2], text)
        return Target(host=host, port=port)
    scheme = next((scheme for scheme in _LISTS if text.startswith(scheme)), "")
    addresses = [address.strip() for address in text.removeprefix(scheme).split(",")]
    for address in addresses:
        _host_port(address, text)
    return Target(addresses=tuple(dict.fromkeys(addresses)))


def _host_port(address: str, text: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "/" in host or (":" in host and not host.startswith("[")):
        raise TargetError(
            f"{text!r} is no address of a tier: write host:port, several with commas between them, or dns:///name:port"
        )
    return host.strip("[]"), int(port)


async def resolve_host(host: str, port: int) -> list[str]:
    """All addresses of a host by the system's resolver, as `IP:port`. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [f"[{ip[0]}]:{port}" if family == socket.AF_INET6 else f"{ip[0]}:{port}" for family, _, _, _, ip in found]


class Discovery:
    """Reads the addresses of one target.

    Args:
        target: The target.
        resolve: Reads a DNS name.
    """

    def __init__(self, target: Target, resolve: Resolve = resolve_host) -> None:
        self._target = target
        self._resolve = resolve
        self._failing = False

    @property
    def fixed(self) -> bool:
        """Whether the addresses never change."""
        return not self._target.host

    @property
    def authority(self) -> str:
        """Name for which the replicas have their certificates; empty: their own addresses."""
        return self._target.host

    async def addresses(self) -> tuple[str, ...] | None:
        """The addresses now; None if the name cannot be read, so that the last ones stay."""
        if self.fixed:
            return self._target.addresses
        try:
            found = await self._resolve(self._target.host, self._target.port)
        except OSError as error:
            if not self._failing:
                log.warning("name cannot be resolved", host=self._target.host, error=str(error))
            self._failing = True
            return None
        self._failing = False
        return tuple(sorted(set(found))) or None
