"""A conductor over fake tiers, in-process and over gRPC."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from gateway.conductor import Conductor, Policy
from gateway.media import RequestLimits
from gateway.retry import Backoff
from gateway.tiers import GrpcDecoderTier, GrpcVisionTier
from serving.transport import open_channel
from tests.gateway.fakes import FakeDecoder, FakeVision, InProcessDecoder, InProcessVision, serve

AT_ONCE = Backoff(first=0.0)


@pytest.fixture
def vision() -> FakeVision:
    """One vision service."""
    return FakeVision()


@pytest.fixture
def decoder() -> FakeDecoder:
    """One decoder."""
    return FakeDecoder()


Conduct = Callable[..., Any]


@pytest.fixture(params=["in-process", "grpc"])
async def conduct(
    request: pytest.FixtureRequest, vision: FakeVision, decoder: FakeDecoder
) -> AsyncIterator[Callable[..., Any]]:
    """Makes a conductor: over calls within this process, and over sockets."""
    async with AsyncExitStack() as stack:
        if request.param == "in-process":
            tiers: tuple[Any, Any] = InProcessVision(vision), InProcessDecoder(decoder)
        else:
            addresses = [(await stack.enter_async_context(serve(fake)))[0] for fake in (vision, decoder)]
            channels = [await stack.enter_async_context(open_channel(address)) for address in addresses]
            tiers = GrpcVisionTier(channels[0]), GrpcDecoderTier(channels[1])

        def make(limits: RequestLimits | None = None, **policy: Any) -> Conductor:
            return Conductor(*tiers, limits or RequestLimits(), Policy(**{"backoff": AT_ONCE, **policy}))

        yield make
