"""Replicas that stand still (SIGSTOP; their connections stay open), behind a whole gateway."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

import pytest

import gateway.service
from serving.transport import Options, service_options
from tests.gateway import processes
from tests.gateway.fakes import FakeDecoder, FakeVision, serve
from tests.gateway.processes import deaf, failure, is_whole, process, until_deaf
from tests.gateway.requests import ask, kinds, text
from vlm.v1 import gateway_pb2_grpc

EVENTS = ["started", "delta", "delta", "delta", "finished"]
SOON = 2.0
"""The gateway's `replica_timeout_seconds` here."""


@pytest.fixture(autouse=True)
def _without_keepalive(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without gRPC's keepalive, which would close the connections later, only the gateway's own checks find out."""

    def options(*arguments: Any, **more: Any) -> Options:
        return [option for option in service_options(*arguments, **more) if "keepalive" not in option[0]]

    monkeypatch.setattr(gateway.service, "service_options", options)


async def test_a_frozen_vision_replica_goes_unnoticed() -> None:
    """Of two replicas one stands still in the middle of a map: the other one encodes the medium."""
    vision, decoder = FakeVision(), FakeDecoder()
    async with (
        process("vision", "3") as (frozen, child),
        serve(vision) as (healthy, _),
        serve(decoder) as (other, _),
        processes.gateway(f"{frozen},{healthy}", other, replica_timeout_seconds=SOON) as channel,
    ):
        asking = await until_deaf(child, gateway_pb2_grpc.GatewayStub(channel))
        child.send_signal(signal.SIGSTOP)
        for events in await asyncio.gather(*asking):
            assert kinds(events) == EVENTS
    assert all(is_whole(call, vision) for call in decoder.calls)


async def test_a_frozen_decoder_goes_unnoticed_before_the_first_token() -> None:
    """Of two replicas one stands still while features are written to it: the other one answers."""
    vision, decoder = FakeVision(chunks=16, chunk_bytes=1 << 20), FakeDecoder()
    async with (
        process("decoder", "read 3") as (frozen, child),
        serve(vision) as (one, _),
        serve(decoder) as (healthy, _),
        processes.gateway(one, f"{frozen},{healthy}", replica_timeout_seconds=SOON) as channel,
    ):
        asking = await until_deaf(child, gateway_pb2_grpc.GatewayStub(channel))
        child.send_signal(signal.SIGSTOP)
        for events in await asyncio.gather(*asking):
            assert kinds(events) == EVENTS


async def test_an_answer_of_a_frozen_decoder_ends_typed() -> None:
    """After the first token the client gets UNAVAILABLE with the tokens so far; once it goes on, the decoder serves."""
    async with (
        process("decoder", "finish") as (frozen, child),
        serve(FakeVision()) as (one, _),
        processes.gateway(one, frozen, replica_timeout_seconds=SOON) as channel,
    ):
        stub = gateway_pb2_grpc.GatewayStub(channel)
        asking = asyncio.create_task(failure(stub.Chat(ask(text("Hello")), timeout=60)))
        await deaf(child)
        child.send_signal(signal.SIGSTOP)
        error = await asking
        assert (error.code.value, error.reason) == ("UNAVAILABLE", "DECODER_UNAVAILABLE")
        assert "after 3 tokens" in error.message
        assert "127.0.0.1" not in error.message
        error = await failure(stub.Chat(ask(text("Hello")), timeout=60))
        assert error.reason == "DECODER_UNAVAILABLE"
        child.send_signal(signal.SIGCONT)
        child.stdin.write(b"go on\n")  # what was asked before fails there, unheard
        await child.stdin.drain()
        while error.reason == "DECODER_UNAVAILABLE":
            error = await failure(stub.Chat(ask(text("Hello")), timeout=60))
        assert error.reason == "FULL"  # its own word
