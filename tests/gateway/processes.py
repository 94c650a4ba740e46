"""A gateway as a server in front of fake tiers, some of them processes that a test may kill or stop."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from gateway.service import GatewayService
from gateway.settings import GatewaySettings
from serving.errors import ServiceError
from serving.server import serve as run_server
from serving.status import from_rpc_error
from serving.transport import open_channel
from tests.gateway.fakes import FakeVision, GenerateCall
from tests.gateway.requests import ask, image
from vlm.v1 import gateway_pb2_grpc


@contextlib.asynccontextmanager
async def gateway(vision: str, decoder: str, **settings: Any) -> AsyncIterator[grpc.aio.Channel]:
    """A gateway on a free port, and a channel to it."""
    chosen = GatewaySettings(vision=vision, decoder=decoder, port=0, http_port=None, grace_seconds=0, **settings)
    stop, listening = asyncio.Event(), asyncio.get_running_loop().create_future()
    running = asyncio.create_task(
        run_server(GatewayService(chosen), chosen, on_listening=listening.set_result, stop=stop)
    )
    await asyncio.wait((running, listening), return_when=asyncio.FIRST_COMPLETED)
    if not listening.done():
        await running  # raises why it did not start
    try:
        async with open_channel(f"127.0.0.1:{listening.result()}") as channel:
            yield channel
    finally:
        stop.set()
        await running


async def failure(call: Any) -> ServiceError:
    """How a call fails, typed."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        [event async for event in call]
    return from_rpc_error(caught.value)


async def everything(call: Any) -> list[Any]:
    """All events of a call."""
    return [event async for event in call]


@contextlib.asynccontextmanager
async def process(what: str, stop_at: str) -> AsyncIterator[tuple[str, Any]]:
    """A fake tier as a process of its own: its address, and the process, which is killed at the end of the block."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.gateway.fakes", what, "--stop-at", stop_at),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert child.stdout is not None
        address = (await child.stdout.readline()).decode().strip()
        assert address, "the process has ended before it listened"
        yield address, child
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()


async def deaf(child: Any) -> None:
    """Wait until the process says that a call has come to the stage at which it stops."""
    assert await child.stdout.readline() == b"deaf\n", "the process has ended before a call came so far"


async def until_deaf(child: Any, stub: gateway_pb2_grpc.GatewayStub) -> list[asyncio.Task[list[Any]]]:
    """Ask until a call has come to the process and stays there; all that was asked, answered or not.

    Each question is about another picture, since equal ones go to one replica.

    The gateway is ready as soon as it is connected to one replica of a tier. Until it is connected to the process, too,
    all questions go to the other replica.
    """
    heard = asyncio.create_task(deaf(child))
    asked: list[asyncio.Task[list[Any]]] = []
    try:
        while not heard.done():
            pictures = [image(b"file %03d" % (len(asked) + i)) for i in range(4)]
            calls = [stub.Chat(ask(picture), timeout=60) for picture in pictures]
            several = [asyncio.create_task(everything(call)) for call in calls]
            asked += several
            answered = asyncio.gather(*several)
            await asyncio.wait([heard, answered], return_when=asyncio.FIRST_COMPLETED)
            if answered.done():
                answered.result()  # raises what failed
        await heard
    finally:
        heard.cancel()
    return asked


def is_whole(call: GenerateCall, vision: FakeVision) -> bool:
    """Whether the features of a picture of `until_deaf` came whole."""
    features = bytes(call.features[0])
    return features == vision.features(features[: len(b"file 000")])
