"""Limits of the connections of a server's ports, so that clients cannot use up its descriptors, memory and places."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator
from dataclasses import dataclass

from serving.errors import Reason, overloaded

_RESERVED_DESCRIPTORS = 512
"""Left for the service's own files, sockets and libraries, and for connections during their TLS handshake."""

_PORTS = 2
"""Ports that share the descriptors: gRPC and HTTP."""


@dataclass(frozen=True)
class ConnectionLimits:
    """Limits of each port.

    Attributes:
        most: Most connections at once.
        handshake_seconds: Time for a new connection until its TLS and HTTP/2 handshake is done (gRPC), or until the
            first request's headers are complete (HTTP).
        idle_seconds: How long a connection without a request stays open.
        receive_seconds: Time for a request's message or body, besides the time that its size allows.
        send_seconds: How long a client may take nothing of its answer.
    """

    most: int = 4096
    handshake_seconds: float = 10.0
    idle_seconds: float = 60.0
    receive_seconds: float = 30.0
    send_seconds: float = 60.0


class Places:
    """The calls that may run at once.

    Args:
        most: Their number.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken = 0

    def check(self) -> None:
        """Check that a place is free.

        Raises:
            ServiceError: RESOURCE_EXHAUSTED with a delay if not.
        """
        if self._taken >= self._most:
            message = f"the limit of {self._most} requests at once is reached (max_concurrent_rpcs)"
            raise overloaded(Reason.TOO_MANY_CALLS, message, retry_after=1.0)

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """Take a place for the length of the block. Raises as `check`."""
        self.check()
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1


def raise_descriptor_limit() -> None:
    """Raise this process's limit of open files to the most that it may set without privileges."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # macOS refuses its own "unlimited"
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def within_descriptors(wanted: int) -> int:
    """The connections that each port may have: `wanted`, or fewer where the limit of open files leaves less."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return wanted
    return max(1, min(wanted, (soft - _RESERVED_DESCRIPTORS) // _PORTS))
