"""A conductor over fake tiers, in-process and over gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import grpc
import pytest

from gateway.conductor import Conductor, Policy
from gateway.media import RequestLimits
from gateway.replicas import Discovery, ReplicaSet, parse_target
from gateway.retry import Backoff
from gateway.tiers import GrpcDecoderTier, GrpcVisionTier
from serving.transport import open_channel, service_options
from tests.gateway.fakes import FakeDecoder, FakeVision, InProcessDecoder, InProcessVision, serve
from vlm.v1 import decoder_pb2_grpc, vision_pb2_grpc

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


async def grpc_tiers(stack: AsyncExitStack, vision: str, decoder: str) -> tuple[GrpcVisionTier, GrpcDecoderTier]:
    """Both tiers at these targets, once all their replicas are available."""
    encoders = ReplicaSet("vision", Discovery(parse_target(vision)), connect, vision_pb2_grpc.VisionEncoderStub)
    decoders = ReplicaSet("decoder", Discovery(parse_target(decoder)), connect, decoder_pb2_grpc.DecoderStub)
    for replicas, target in ((encoders, vision), (decoders, decoder)):
        await until_available(await stack.enter_async_context(replicas), len(target.split(",")))
    return GrpcVisionTier(encoders), GrpcDecoderTier(decoders)


async def until_available(replicas: ReplicaSet[Any], count: int = 1) -> None:
    """Wait until this many replicas are available."""
    while replicas.count.available != count:  # noqa: ASYNC110  # it has no event
        await asyncio.sleep(0.01)


def connect(address: str, authority: str) -> grpc.aio.Channel:
    """A channel to a replica."""
    return open_channel(address, service_options(authority=authority))


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
            tiers = await grpc_tiers(stack, *addresses)

        def make(limits: RequestLimits | None = None, **policy: Any) -> Conductor:
            return Conductor(*tiers, limits or RequestLimits(), Policy(**{"backoff": AT_ONCE, **policy}))

        yield make
