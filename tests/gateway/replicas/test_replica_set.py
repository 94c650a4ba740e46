"""Replicas on the loopback: found, watched, chosen, left."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client import REGISTRY

from gateway.conductor import Conductor, Policy
from gateway.media import RequestLimits
from gateway.ports import ReplicaCount, Route
from gateway.replicas import Discovery, HealthPolicy, ReplicaSet, parse_target
from gateway.replicas.ejection import EjectionPolicy
from gateway.retry import Backoff, Deadline
from gateway.tiers import GrpcDecoderTier
from serving.errors import Code, Reason, ServiceError, overloaded
from serving.status import from_rpc_error
from serving.transport import service_options
from tests.gateway.conftest import connect, grpc_tiers, until_available
from tests.gateway.fakes import (
    EncodeCall,
    FakeDecoder,
    FakeVision,
    GenerateCall,
    InProcessVision,
    down,
    serve,
    set_serving,
)
from tests.gateway.requests import answer, ask, chat, image, text, user
from vlm.v1 import chat_pb2, decoder_pb2, decoder_pb2_grpc, gateway_pb2

NEVER_LOST = HealthPolicy(interval=0.05, lost=60.0)
TICK = 0.02
"""Seconds between two readings of the addresses here."""


def decoders(target: str, discovery: Discovery | None = None, **options: Any) -> ReplicaSet[Any]:
    """The decoders at a target."""
    found = discovery or Discovery(parse_target(target))
    options = {"resolve_seconds": TICK, "health": NEVER_LOST, **options}
    return ReplicaSet("decoder", found, connect, decoder_pb2_grpc.DecoderStub, **options)


async def model(replicas: ReplicaSet[Any], route: Route | None = None) -> str:
    """One short call: the replica to which it went."""
    route = route or Route()
    before = set(route.tried)
    await GrpcDecoderTier(replicas).model(seconds=30, route=route)
    return next(iter(route.tried - before), "")


async def until_left(replicas: ReplicaSet[Any], address: str) -> None:
    """Wait until this replica gets no calls."""
    while address in [await model(replicas) for _ in range(8)]:  # noqa: ASYNC110  # there is no event
        await asyncio.sleep(TICK)


def measured(name: str, **labels: str) -> float:
    """A metric of the decoder tier."""
    return REGISTRY.get_sample_value(name, {"tier": "decoder", **labels}) or 0.0


def conductor(replicas: ReplicaSet[Any], vision: FakeVision | None = None) -> Conductor:
    """A gateway's core over these decoders."""
    policy = Policy(backoff=Backoff(first=0.0))
    return Conductor(InProcessVision(vision or FakeVision()), GrpcDecoderTier(replicas), RequestLimits(), policy)


@contextlib.asynccontextmanager
async def served(*fakes: FakeDecoder) -> AsyncIterator[list[str]]:
    """The addresses of decoders."""
    async with contextlib.AsyncExitStack() as stack:
        yield [(await stack.enter_async_context(serve(fake)))[0] for fake in fakes]


async def test_replicas_behind_a_name_come_and_go() -> None:
    """A new address gets calls; one that has vanished ends its running call and gets no others."""
    writes, going = asyncio.Event(), asyncio.Event()

    async def hook(call: GenerateCall, stage: str) -> None:
        if stage == "finish":
            going.set()
            await writes.wait()

    old, new = FakeDecoder(), FakeDecoder()
    old.hook = hook
    async with served(old, new) as (first, second):
        listed = [first]

        async def resolve(host: str, port: int) -> list[str]:
            return listed

        discovery = Discovery(parse_target("dns:///decoder:50062"), resolve)
        async with decoders("", discovery) as replicas:
            await until_available(replicas)
            asking = asyncio.create_task(chat(conductor(replicas), ask(text("Hello"))))
            await going.wait()
            listed = [second]
            await until_left(replicas, first)
            assert {await model(replicas) for _ in range(5)} == {second}
            writes.set()
            assert answer(await asking) == "A red circle."
            listed = [first, second]
            await until_available(replicas, 2)


async def test_a_replica_that_drains_is_left_at_once_and_ends() -> None:
    """NOT_SERVING ends its new calls, and what watches it does not hold it open."""
    drained, other = FakeDecoder(), FakeDecoder()
    async with serve(drained) as (first, server), serve(other) as (second, _), decoders(f"{first},{second}") as both:
        await until_available(both, 2)
        await set_serving(drained, serving=False)
        await until_available(both, 1)
        assert {await model(both) for _ in range(5)} == {second}
        await asyncio.wait_for(server.stop(60), 30)  # not its grace period
        await set_serving(drained, serving=True)


async def listen(core: Conductor, told: asyncio.Event) -> list[chat_pb2.ChatEvent]:
    """All events of an answer; `told` is set at the first token."""
    seen = []
    async with contextlib.aclosing(core.chat(ask(text("Hello")), request_id="r", deadline=Deadline(30))) as events:
        async for event in events:
            seen.append(event)
            if event.HasField("delta"):
                told.set()
    return seen


@pytest.mark.parametrize(("stage", "moves"), [("start", True), ("finish", False)])
async def test_what_has_not_started_moves_from_a_replica_that_drains(stage: str, moves: bool) -> None:
    """A generation without a first token moves to the other replica; one with tokens ends where it runs."""
    entered, told, finish = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def hook(call: GenerateCall, at: str) -> None:
        if at == stage:
            entered.set()
            await finish.wait()

    drained, other = FakeDecoder(), FakeDecoder()
    drained.hook = hook
    async with served(drained, other) as (first, second):

        def pick(key: bytes, loads: Mapping[str, float], slack: float, last: str | None) -> str:
            return first if first in loads else second

        async with decoders(f"{first},{second}", choose=pick) as replicas:
            await until_available(replicas, 2)
            asking = asyncio.create_task(listen(conductor(replicas), told))
            await entered.wait()
            if not moves:
                await told.wait()  # the tokens have arrived at the gateway, too
            await set_serving(drained, serving=False)
            if not moves:
                await until_available(replicas, 1)
                finish.set()
            assert answer(await asking) == "A red circle."
            assert len(other.calls) == int(moves)


async def test_a_replica_that_drains_alone_ends_its_calls() -> None:
    """Without another replica, a generation that has not started has the grace period."""
    entered, finish = asyncio.Event(), asyncio.Event()

    async def hook(call: GenerateCall, stage: str) -> None:
        entered.set()
        await finish.wait()

    drained = FakeDecoder()
    drained.hook = hook
    async with served(drained) as (address,), decoders(address) as replicas:
        await until_available(replicas)
        asking = asyncio.create_task(chat(conductor(replicas), ask(text("Hello"))))
        await entered.wait()
        await set_serving(drained, serving=False)
        await until_available(replicas, 0)
        finish.set()
        assert answer(await asking) == "A red circle."


async def test_a_replica_that_serves_again_gets_calls() -> None:
    """A replica that was NOT_SERVING for a while, or gone, is back soon."""
    fake = FakeDecoder()
    async with contextlib.AsyncExitStack() as stack:
        async with serve(fake) as (address, _):
            replicas = await stack.enter_async_context(decoders(address))
            await until_available(replicas)
            await set_serving(fake, serving=False)
            await until_available(replicas, 0)
            with pytest.raises(ServiceError, match=r"none of its replicas is available \(1 known\)") as caught:
                await model(replicas)
            assert (caught.value.code, caught.value.reason) == (Code.UNAVAILABLE, Reason.NO_REPLICA.name)
            await set_serving(fake, serving=True)
            await until_available(replicas)
        await until_available(replicas, 0)
        await stack.enter_async_context(serve(FakeDecoder(), int(address.rpartition(":")[2])))
        await until_available(replicas)


async def test_a_server_without_health_counts_as_serving() -> None:
    """It is another's server, or an old one."""
    fake = FakeDecoder()
    fake.health = None
    async with served(fake) as (address,), decoders(address) as replicas:
        await until_available(replicas)
        assert await model(replicas) == address


async def test_an_address_that_accepts_and_never_answers_gets_no_calls() -> None:
    """A port behind which nothing works does not delay any call."""
    black_hole = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    silent = f"127.0.0.1:{black_hole.sockets[0].getsockname()[1]}"
    async with black_hole, served(FakeDecoder()) as (address,), decoders(f"{silent},{address}") as replicas:
        await until_available(replicas)
        assert {await model(replicas) for _ in range(10)} == {address}
        assert replicas.count == ReplicaCount(available=1, known=2)


async def test_a_replica_that_fails_is_ejected_and_comes_back() -> None:
    """After failures in a row a healthy replica gets no calls, and later one, whose success brings more."""
    works = False

    async def hook(call: GenerateCall, stage: str) -> None:
        if not works:
            raise down()

    bad, good = FakeDecoder(), FakeDecoder()
    bad.hook = hook
    async with served(bad, good) as addresses:
        target = ",".join(addresses)
        async with decoders(target, ejection=EjectionPolicy(failures=2, first=3600)) as replicas:
            await until_available(replicas, 2)
            core, repeated = conductor(replicas), measured("triptych_retries_total", outcome="repeated")
            for number in range(30):
                assert answer(await chat(core, ask(text(f"Hello {number}")))) == "A red circle."
            assert replicas.count == ReplicaCount(available=2, known=2, ejected=1)
            while measured("triptych_replicas", state="ejected") != 1:  # noqa: ASYNC110  # there is no event
                await asyncio.sleep(TICK)
            assert measured("triptych_replicas", state="available") == 1
            assert measured("triptych_retries_total", outcome="repeated") == repeated + 2
            assert len(bad.calls) == 2
        async with decoders(target, ejection=EjectionPolicy(failures=2, first=0.1)) as replicas:
            await until_available(replicas, 2)
            core = conductor(replicas)
            while len(bad.calls) < 4:
                assert answer(await chat(core, ask(text(f"Hello {len(good.calls)}")))) == "A red circle."
            works = True
            while len(bad.calls) < 6:  # the first of these is the probation
                assert answer(await chat(core, ask(text(f"Hello {len(good.calls)}")))) == "A red circle."


async def test_a_call_without_a_first_message_is_moved() -> None:
    """A replica whose server answers health checks and nothing else: another one takes the request."""
    stuck, good = FakeDecoder(), FakeDecoder()

    async def hook(call: GenerateCall, stage: str) -> None:
        if stage == "open":
            await asyncio.Event().wait()

    stuck.hook = hook
    async with served(stuck, good) as addresses, decoders(",".join(addresses), first_seconds=1.0) as replicas:
        await until_available(replicas, 2)
        core, count = conductor(replicas), 0
        while not stuck.calls:
            assert answer(await chat(core, ask(text(f"Hello {count}")))) == "A red circle."
            count += 1
        await stuck.calls[0].ended.wait()


def full(seconds: float) -> ServiceError:
    """A replica's word that its queue is full."""
    return overloaded(Reason.QUEUE_FULL, "the queue is full", retry_after=seconds)


async def test_a_full_replica_is_passed_over() -> None:
    """If one replica says QUEUE_FULL, another one answers. If all do, the client gets the shortest delay."""
    fakes = FakeDecoder(), FakeDecoder(), FakeDecoder()
    refusing = {0: 7.0}

    def hook_of(number: int) -> Any:
        async def hook(call: GenerateCall, stage: str) -> None:
            if number in refusing:
                raise full(refusing[number])

        return hook

    for number, fake in enumerate(fakes):
        fake.hook = hook_of(number)
    async with served(*fakes) as addresses, decoders(",".join(addresses)) as replicas:
        await until_available(replicas, 3)
        core, count = conductor(replicas), 0
        while not fakes[0].calls:
            assert answer(await chat(core, ask(text(f"Hello {count}")))) == "A red circle."
            count += 1
        refusing |= {1: 3.0, 2: 5.0}
        before = sum(len(fake.calls) for fake in fakes)
        with pytest.raises(ServiceError, match="the queue is full") as caught:
            await chat(core, ask(text("Hello")))
        assert (caught.value.code, caught.value.retry_after) == (Code.RESOURCE_EXHAUSTED, 3.0)
        assert sum(len(fake.calls) for fake in fakes) == before + 3


@contextlib.asynccontextmanager
async def two_encoders(calls: int) -> AsyncIterator[tuple[Conductor, tuple[FakeVision, FakeVision]]]:
    """A gateway's core over two encoders, which wait until both together have so many calls."""
    fakes = FakeVision(), FakeVision()
    all_there = asyncio.Event()

    async def hook(call: EncodeCall, chunk: int) -> None:
        if sum(len(fake.calls) for fake in fakes) == calls:
            all_there.set()
        await all_there.wait()

    for fake in fakes:
        fake.hook = hook
    async with contextlib.AsyncExitStack() as stack:
        addresses = [(await stack.enter_async_context(serve(fake)))[0] for fake in (*fakes, FakeDecoder())]
        vision, decoder = await grpc_tiers(stack, ",".join(addresses[:2]), addresses[2])
        core = Conductor(vision, decoder, RequestLimits(), Policy())
        yield core, fakes


async def test_pictures_of_one_request_use_all_idle_encoders() -> None:
    """Four pictures and two encoders: two each, at the same time."""
    async with two_encoders(calls=4) as (core, fakes):
        assert answer(await chat(core, ask(*[image(b"file %d" % i) for i in range(4)]))) == "A red circle."
    assert [len(fake.calls) for fake in fakes] == [2, 2]


async def test_one_picture_of_many_requests_is_encoded_once() -> None:
    """While a picture is being encoded, others who ask about it join that replica, also if another one is idle."""
    async with two_encoders(calls=6) as (core, fakes):
        await asyncio.gather(*(chat(core, ask(image(b"file one"), text(f"Question {i}"))) for i in range(6)))
    assert sorted(len(fake.calls) for fake in fakes) == [0, 6]


async def test_calls_without_a_key_leave_the_memory_of_keys_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """After any number of them it is still known which replica a key had last."""
    monkeypatch.setattr("gateway.replicas.replica_set._KEYS", 1)
    known: list[str | None] = []

    def first(key: bytes, loads: Mapping[str, float], slack: float = 0.0, last: str | None = None) -> str:
        known.append(last)
        return min(loads)

    async with served(FakeDecoder()) as (address,), decoders(address, choose=first) as replicas:
        await until_available(replicas)
        for route in (Route(b"key"), Route(), Route(), Route(b"key")):
            await model(replicas, route)
        assert known == [None, None, None, address]


async def test_a_second_turn_goes_where_the_first_went() -> None:
    """The beginning of a conversation, its picture included, chooses the decoder."""
    fakes = FakeDecoder(), FakeDecoder(), FakeDecoder()
    async with served(*fakes) as addresses, decoders(",".join(addresses)) as replicas:
        await until_available(replicas, 3)
        core = conductor(replicas)
        for number in range(12):
            first = ask(image(b"file %d" % number), text("What is this?"))
            await chat(core, first)
            [place] = [fake for fake in fakes if len(fake.calls) == 1]
            said = chat_pb2.Message(role=chat_pb2.ROLE_ASSISTANT, parts=[text("A red circle.")])
            await chat(core, gateway_pb2.ChatRequest(messages=[*first.messages, said, user(text("And now?"))]))
            assert len(place.calls) == 2
            for fake in fakes:
                assert len(fake.calls) == (2 if fake is place else 0)
                fake.calls.clear()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="a certificate is made with openssl")
async def test_replicas_of_a_name_are_verified_by_that_name(tmp_path: Path) -> None:
    """A certificate is for the name of the tier, not for the addresses that DNS gives."""
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    await asyncio.to_thread(
        subprocess.run,
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-subj", "/", "-addext", "subjectAltName=DNS:decoder.test", "-keyout", key, "-out", certificate),
        ],
        check=True,
        capture_output=True,
    )
    pem = certificate.read_bytes()
    credentials = grpc.ssl_channel_credentials(pem)

    def connect_securely(address: str, authority: str) -> grpc.aio.Channel:
        return grpc.aio.secure_channel(address, credentials, service_options(authority=authority))

    async def resolve(host: str, port: int) -> list[str]:
        return [f"127.0.0.1:{port}"]

    server = grpc.aio.server()
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key.read_bytes(), pem)]))
    await server.start()
    try:
        for name, expected in (("decoder.test", Code.UNIMPLEMENTED), ("other.test", Code.UNAVAILABLE)):
            discovery = Discovery(parse_target(f"dns:///{name}:{port}"), resolve)
            [address] = await discovery.addresses() or ()
            async with connect_securely(address, discovery.authority) as channel:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await decoder_pb2_grpc.DecoderStub(channel).GetModel(decoder_pb2.GetModelRequest(), timeout=30)
            assert from_rpc_error(caught.value).code is expected
    finally:
        await server.stop(None)
