"""The whole gateway as a server, over sockets, in front of fake tiers."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serving.errors import Code
from serving.server import StartError
from serving.status import from_rpc_error
from tests.gateway.fakes import MODEL, EncodeCall, FakeDecoder, FakeVision, GenerateCall, serve
from tests.gateway.processes import deaf, everything, failure, gateway, is_whole, process, until_deaf
from tests.gateway.requests import answer, ask, image, kinds, text
from vlm.v1 import gateway_pb2, gateway_pb2_grpc

EVENTS = ["started", "delta", "delta", "delta", "finished"]


@pytest.fixture
async def door(vision: FakeVision, decoder: FakeDecoder) -> AsyncIterator[gateway_pb2_grpc.GatewayStub]:
    """A stub of a gateway in front of one replica of each tier."""
    async with serve(vision) as (one, _), serve(decoder) as (other, _), gateway(one, other) as channel:
        yield gateway_pb2_grpc.GatewayStub(channel)


async def test_a_conversation(door: Any) -> None:
    """A picture goes in and the words come out, with the request's id in `started` and in the metadata."""
    call = door.Chat(ask(image(b"file one"), text("What is this?"), request_id="mine"), timeout=30)
    assert ("x-request-id", "mine") in list(await call.initial_metadata())
    events = [event async for event in call]
    assert kinds(events) == EVENTS
    assert answer(events) == "A red circle."
    assert events[0].started.request_id == "mine"


async def test_a_request_without_an_id_gets_one(door: Any) -> None:
    """The gateway's own id is the same in `started` and in the metadata, and goes to both tiers."""
    call = door.Chat(ask(text("Hello")), timeout=30)
    metadata = dict(await call.initial_metadata())
    events = [event async for event in call]
    assert re.fullmatch("[0-9a-f]{32}", events[0].started.request_id)
    assert metadata["x-request-id"] == events[0].started.request_id


async def test_a_bad_request_id_is_refused(door: Any) -> None:
    """An id that would spoil logs and headers is INVALID_ARGUMENT."""
    error = await failure(door.Chat(ask(text("Hello"), request_id="a\nb"), timeout=30))
    assert error.violations[0].field == "request_id"


async def test_typed_errors_reach_the_client(door: Any) -> None:
    """Code, reason and field of a tier's error arrive as google.rpc details, and the next request works."""
    error = await failure(door.Chat(ask(image(b"rubbish")), timeout=30))
    assert (error.code.value, error.reason) == ("INVALID_ARGUMENT", "IMAGE_UNREADABLE")
    assert error.violations[0].field == "messages[0].parts[0].image"
    assert kinds([event async for event in door.Chat(ask(text("Hello")), timeout=30)]) == EVENTS


async def test_the_clients_deadline_is_passed_on(door: Any, vision: FakeVision, decoder: FakeDecoder) -> None:
    """Both tiers get the time that the client has left; a client without a deadline gets the gateway's."""
    async for _ in door.Chat(ask(image(b"file one")), timeout=20):
        pass
    async for _ in door.Chat(ask(image(b"file one"))):
        pass
    for calls in (vision.calls, decoder.calls):
        assert 10 < calls[0].seconds < 22  # gRPC rounds a little up
        assert 500 < calls[1].seconds < 610


async def test_a_client_without_time_left_frees_both_tiers(door: Any, vision: FakeVision, decoder: FakeDecoder) -> None:
    """When the client's deadline passes, the encode and the generation end."""

    async def hook(call: EncodeCall, chunk: int) -> None:
        if chunk == 2:
            await asyncio.Event().wait()

    vision.hook = hook
    while not (vision.calls and decoder.calls):  # the time may be over before the call has come to both
        error = await failure(door.Chat(ask(image(b"file one")), timeout=0.5))
        assert error.code.value == "DEADLINE_EXCEEDED"
    for call in (*vision.calls, *decoder.calls):
        await call.ended.wait()


async def test_the_gateways_own_deadline(vision: FakeVision, decoder: FakeDecoder) -> None:
    """A client without a deadline gets DEADLINE_EXCEEDED with the gateway's own, typed."""

    async def hook(call: GenerateCall, stage: str) -> None:
        if stage == "delta":
            await asyncio.Event().wait()

    decoder.hook = hook
    async with (
        serve(vision) as (one, _),
        serve(decoder) as (other, _),
        gateway(one, other, default_deadline_seconds=0.5) as channel,
    ):
        while not decoder.calls:  # the time may be over before the call has come to the decoder
            error = await failure(gateway_pb2_grpc.GatewayStub(channel).Chat(ask(text("Hello"))))
            assert (error.code.value, error.reason) == ("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED")
            assert "within its 0.5 seconds" in error.message
    await decoder.calls[0].ended.wait()


async def test_a_client_that_cancels_frees_both_tiers(door: Any, vision: FakeVision, decoder: FakeDecoder) -> None:
    """Cancelling the call ends the encode and the generation; the next request works."""
    on_its_way = asyncio.Event()

    async def hook(call: EncodeCall, chunk: int) -> None:
        if chunk == 2:
            on_its_way.set()
            await asyncio.Event().wait()

    vision.hook = hook
    call = door.Chat(ask(image(b"file one")), timeout=60)
    await on_its_way.wait()
    call.cancel()
    await vision.calls[0].ended.wait()
    await decoder.calls[0].ended.wait()
    assert not decoder.calls[0].complete
    assert kinds([event async for event in door.Chat(ask(text("Hello")), timeout=30)]) == EVENTS


async def _stalled(vision: FakeVision) -> int:
    """Wait until the first encode makes no progress: how many chunks it has sent."""
    await vision.called.wait()
    before, still = -1, 0
    while still < 5:  # that something does not happen has no event to wait for
        await asyncio.sleep(0.05)
        still = still + 1 if vision.calls[0].sent == before else 0
        before = vision.calls[0].sent
    return before


async def test_a_decoder_that_takes_nothing_stops_the_encoder(
    door: Any, vision: FakeVision, decoder: FakeDecoder
) -> None:
    """While the decoder does not read, the encoder's stream stops far from its end; then the map arrives whole."""
    vision.chunks, vision.chunk_bytes = 64, 1 << 20
    reads = asyncio.Event()

    async def hook(call: GenerateCall, stage: str) -> None:
        if stage == "read" and len(call.order) == 2:
            await reads.wait()

    decoder.hook = hook
    asking = asyncio.create_task(everything(door.Chat(ask(image(b"file one")), timeout=60)))
    # Four of them at most are the gateway's, the others are in the windows of two connections: 14 were seen.
    assert await _stalled(vision) <= 32
    reads.set()
    assert kinds(await asking) == EVENTS
    assert bytes(decoder.calls[0].features[0]) == vision.features(b"file one")


async def test_an_error_in_the_middle_of_a_write_is_not_lost() -> None:
    """A decoder that fails while writes to it are blocked is heard (grpc's own `write` says INTERNAL instead)."""
    vision = FakeVision(chunks=32, chunk_bytes=1 << 20)
    async with (
        process("decoder", "read 2") as (address, child),
        serve(vision) as (one, _),
        gateway(one, address) as channel,
    ):
        stub = gateway_pb2_grpc.GatewayStub(channel)
        asking = [asyncio.create_task(failure(stub.Chat(ask(image(b"file one")), timeout=60))) for _ in range(8)]
        for _ in asking:
            await deaf(child)
        await _stalled(vision)
        child.stdin.write(b"fail\n")
        await child.stdin.drain()
        errors = await asyncio.gather(*asking)
    assert {(error.code, error.reason) for error in errors} == {(Code.RESOURCE_EXHAUSTED, "FULL")}


@pytest.mark.parametrize("stop_at", ["0", "3"])
async def test_a_killed_vision_replica_goes_unnoticed(stop_at: str, decoder: FakeDecoder) -> None:
    """Of two replicas one is killed in the middle of a feature map: the other one encodes the medium."""
    vision = FakeVision()
    async with (
        process("vision", stop_at) as (doomed, child),
        serve(vision) as (healthy, _),
        serve(decoder) as (other, _),
        gateway(f"ipv4:{doomed},{healthy}", other) as channel,
    ):
        asking = await until_deaf(child, gateway_pb2_grpc.GatewayStub(channel))
        child.kill()
        for events in await asyncio.gather(*asking):
            assert kinds(events) == EVENTS
    assert all(is_whole(call, vision) for call in decoder.calls)


@pytest.mark.parametrize("stop_at", ["open", "read 0", "read 3", "start", "delta"])
async def test_a_killed_decoder_replica_goes_unnoticed_before_the_first_token(stop_at: str) -> None:
    """Of two replicas one is killed at any stage before a token, also while features are written to it."""
    vision, decoder = FakeVision(chunks=16, chunk_bytes=1 << 20), FakeDecoder()
    async with (
        process("decoder", stop_at) as (doomed, child),
        serve(vision) as (one, _),
        serve(decoder) as (healthy, _),
        gateway(one, f"ipv4:{doomed},{healthy}") as channel,
    ):
        asking = await until_deaf(child, gateway_pb2_grpc.GatewayStub(channel))
        child.kill()
        for events in await asyncio.gather(*asking):
            assert kinds(events) == EVENTS
    assert all(is_whole(call, vision) for call in decoder.calls if call.complete)


async def test_tiers_that_are_gone_are_named(vision: FakeVision, decoder: FakeDecoder) -> None:
    """A request fails soon, with the tier's name and no address; text alone does without the vision tier."""
    async with contextlib.AsyncExitStack() as stack:
        one, vision_server = await stack.enter_async_context(serve(vision))
        other, decoder_server = await stack.enter_async_context(serve(decoder))
        stub = gateway_pb2_grpc.GatewayStub(await stack.enter_async_context(gateway(one, other)))
        await vision_server.stop(None)
        error = await failure(stub.Chat(ask(image(b"file one")), timeout=30))
        assert (error.code.value, error.reason) == ("UNAVAILABLE", "VISION_UNAVAILABLE")
        assert error.retry_after is not None
        assert "127.0.0.1" not in error.message
        assert kinds(await everything(stub.Chat(ask(text("Hello")), timeout=30))) == EVENTS
        await decoder_server.stop(None)
        error = await failure(stub.Chat(ask(text("Hello")), timeout=30))
        assert (error.code.value, error.reason) == ("UNAVAILABLE", "DECODER_UNAVAILABLE")


async def test_counting_listing_and_uploading(door: Any) -> None:
    """CountTokens counts, ListModels lists, and UploadMedia says that it is not there."""
    counted = await door.CountTokens(gateway_pb2.CountTokensRequest(messages=ask(image(b"file one")).messages))
    assert (counted.prompt_tokens, counted.media_tokens) == (18, 8)
    listed = await door.ListModels(gateway_pb2.ListModelsRequest())
    assert [model.id for model in listed.models] == [MODEL]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await door.UploadMedia(iter([gateway_pb2.UploadMediaRequest(chunk=b"x")]))
    error = from_rpc_error(caught.value)
    assert (error.code.value, error.reason) == ("UNIMPLEMENTED", "METHOD_UNIMPLEMENTED")


async def test_it_waits_for_its_tiers(vision: FakeVision, decoder: FakeDecoder) -> None:
    """A gateway that starts before its tiers becomes healthy when they are there."""
    async with serve(vision) as (one, _):
        async with serve(decoder) as (other, _):
            pass  # now its port is known and free
        opening = asyncio.create_task(_healthy(one, other))
        await asyncio.sleep(0)
        async with serve(decoder, int(other.rpartition(":")[2])):
            assert await opening == health_pb2.HealthCheckResponse.SERVING


async def _healthy(one: str, other: str) -> Any:
    async with gateway(one, other) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        return (await stub.Check(health_pb2.HealthCheckRequest(service="vlm.v1.Gateway"))).status


async def test_tiers_of_different_bundles_are_refused(decoder: FakeDecoder) -> None:
    """The gateway does not start in front of an encoder that the decoder would refuse."""
    async with serve(FakeVision(fingerprint="1" * 64)) as (one, _), serve(decoder) as (other, _):
        with pytest.raises(StartError, match="start both from the same bundle"):
            async with gateway(one, other):
                pass


async def test_a_vision_tier_must_suit_the_model(decoder: FakeDecoder) -> None:
    """A model that takes text only has none, another one needs one, and the gateway says which setting is wrong."""
    async with serve(FakeDecoder(fingerprint="")) as (text_only, _), serve(decoder) as (other, _):
        with pytest.raises(StartError, match="takes text only: set `vision` to off"):
            async with gateway("127.0.0.1:9", text_only):  # it does not wait for that
                pass
        with pytest.raises(StartError, match="takes images: set `vision` to the address"):
            async with gateway("off", other):
                pass


async def test_the_wrong_service_at_an_address_is_refused(decoder: FakeDecoder) -> None:
    """Addresses that were mixed up are told apart at the start."""
    async with serve(decoder) as (other, _):
        with pytest.raises(StartError, match="another service than the vision service answers"):
            async with gateway(other, other):
                pass
