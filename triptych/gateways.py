"""The gateways of a client: equal servers, of which one is used until it fails."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from serving.errors import Code
from serving.transport import Options, client_options
from triptych.errors import TriptychError
from vlm.v1 import gateway_pb2_grpc

C = TypeVar("C")

_SCHEMES = ("dns:", "ipv4:", "ipv6:", "unix:", "unix-abstract:", "vsock:", "xds:")


def addresses_of(given: str | Iterable[str]) -> tuple[str, ...]:
    """The addresses that a client is given.

    Args:
        given: `host:port`; several, separated by commas or as a sequence. A name with one of gRPC's schemes, such as
            `ipv4:10.0.0.1:50051,10.0.0.2:50051`, is one address, between whose servers gRPC chooses.

    Raises:
        TypeError: It is neither a string nor strings.
        ValueError: It is empty, or one of several is.
    """
    several: list[Any]  # whatever people pass
    if isinstance(given, str):
        several = [given] if given.startswith(_SCHEMES) else given.split(",")
    else:
        several = list(given) if isinstance(given, Iterable) else [given]  # type: ignore[redundant-expr]
    for address in several:
        if not isinstance(address, str):
            raise TypeError(f"an address is HOST:PORT as a string, not {type(address).__name__}")
        if not address.strip():
            raise ValueError(f"there is an empty address in {given!r}; write HOST:PORT")
    if not several:
        raise ValueError("there is no address; write HOST:PORT")
    return tuple(address.strip() for address in several)


@dataclass(frozen=True, eq=False)  # by identity
class Gateway(Generic[C]):
    """One gateway.

    Attributes:
        address: Its address.
        channel: The channel to it.
        stub: Its methods.
    """

    address: str
    channel: C
    stub: Any


class Gateways(Generic[C]):
    """The gateways, in an order of this client's own, so that many clients are spread over them.

    Args:
        given: As for `addresses_of`.
        connect: Opens a channel to an address with these options. gRPC connects at the first call.
    """

    def __init__(self, given: str | Iterable[str], connect: Callable[[str, Options], C]) -> None:
        addresses = addresses_of(given)
        self._gateways: list[Gateway[C]] = []
        for address in random.sample(addresses, len(addresses)):
            channel = connect(address, client_options(address))
            stub = gateway_pb2_grpc.GatewayStub(channel)  # type: ignore[call-overload]  # of either kind
            self._gateways.append(Gateway(address, channel, stub))
        self._used = 0

    def __len__(self) -> int:
        return len(self._gateways)

    @property
    def used(self) -> Gateway[C]:
        """The gateway to call."""
        return self._gateways[self._used]

    def leave_after(self, error: TriptychError, failed: Gateway[C]) -> None:
        """Use the next one after UNAVAILABLE, unless another call has left the failed one already."""
        if error.code is Code.UNAVAILABLE and self.used is failed:
            self._used = (self._gateways.index(failed) + 1) % len(self._gateways)

    @property
    def channels(self) -> list[C]:
        """All channels."""
        return [gateway.channel for gateway in self._gateways]
