"""The gateway's ports over TLS and its calls to the tiers over mTLS, as one server."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from gateway.service import GatewayService
from gateway.settings import GatewaySettings
from serving.server import StartError, serve
from serving.transport import open_channel
from tests import certificates
from tests.gateway.fakes import MODEL, FakeDecoder, FakeVision
from tests.gateway.fakes import serve as serve_fake
from tests.gateway.requests import answer, ask, image, text
from vlm.v1 import gateway_pb2_grpc

pytestmark = certificates.needs_openssl

GATEWAY = frozenset({"gateway"})


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A CA and certificates."""
    return certificates.make(tmp_path / "tls")


@contextlib.asynccontextmanager
async def gateway(vision: str, decoder: str, **settings: Any) -> AsyncIterator[tuple[int, int]]:
    """A gateway: its gRPC and its HTTP port."""
    chosen = GatewaySettings(vision=vision, decoder=decoder, port=0, http_port=0, grace_seconds=0, **settings)
    service = GatewayService(chosen)
    stop, listening = asyncio.Event(), asyncio.get_running_loop().create_future()
    running = asyncio.create_task(serve(service, chosen, on_listening=listening.set_result, stop=stop))
    await asyncio.wait((running, listening), return_when=asyncio.FIRST_COMPLETED)
    if not listening.done():
        await running  # raises why it did not start
    try:
        yield listening.result(), int(str(service.http_address).rpartition(":")[2])
    finally:
        stop.set()
        await running


async def test_both_doors_and_both_tiers(files: Path, vision: FakeVision, decoder: FakeDecoder) -> None:
    """A question passes over TLS and mTLS through both doors; after a renewal by another CA it does so again."""
    settings = {
        "tls_cert": files / "door/cert.pem",
        "tls_key": files / "door/key.pem",
        "tier_ca": files / "ca.pem",
        "tier_cert": files / "gateway/cert.pem",
        "tier_key": files / "gateway/key.pem",
    }
    tiers = [certificates.server(files, name, mutual=True) for name in ("vision", "decoder")]

    async def question(grpc_port: int, http_port: int) -> str:
        """Ask at both doors on new connections; returns the serial number that both present."""
        async with open_channel(f"localhost:{grpc_port}", credentials=certificates.client(files)) as channel:
            request = ask(image(b"file one"), text("What is this?"))
            events = [event async for event in gateway_pb2_grpc.GatewayStub(channel).Chat(request, timeout=60)]
            assert answer(events) == "A red circle."
        trusted = certificates.trusting(files)
        async with httpx.AsyncClient(verify=trusted, timeout=60, trust_env=False) as client:
            response = await client.get(f"https://localhost:{http_port}/v1/models")
            assert response.json()["data"][0]["id"] == MODEL
        serials = {
            await asyncio.to_thread(certificates.served_serial, "127.0.0.1", port, trusted)
            for port in (grpc_port, http_port)
        }
        assert serials == {certificates.serial(files, "door")}
        return serials.pop()

    async with (
        serve_fake(vision, credentials=tiers[0], client_names=GATEWAY) as (one, _),
        serve_fake(decoder, credentials=tiers[1], client_names=GATEWAY) as (other, _),
        gateway(one, other, **settings) as ports,
    ):
        before = await question(*ports)
        (files / "ca.key").unlink()
        certificates.make(files)
        assert await question(*ports) != before


async def test_a_door_for_holders_of_a_certificate(files: Path, vision: FakeVision, decoder: FakeDecoder) -> None:
    """With `tls_client_ca` both doors refuse a client without a certificate, and serve one that has it."""
    settings = {
        "tls_cert": files / "door/cert.pem",
        "tls_key": files / "door/key.pem",
        "tls_client_ca": files / "ca.pem",
    }

    async def call(port: int, name: str | None) -> str:
        async with open_channel(f"localhost:{port}", credentials=certificates.client(files, name)) as channel:
            chat = gateway_pb2_grpc.GatewayStub(channel).Chat(ask(text("Hello")), timeout=60)
            return answer([event async for event in chat])

    async def get(port: int, name: str | None) -> int:
        context = certificates.trusting(files, name)
        async with httpx.AsyncClient(verify=context, timeout=60, trust_env=False) as client:
            return (await client.get(f"https://localhost:{port}/healthz")).status_code

    async with (
        serve_fake(vision) as (one, _),
        serve_fake(decoder) as (other, _),
        gateway(one, other, **settings) as (grpc_port, http_port),
    ):
        assert await call(grpc_port, "gateway") == "A red circle."
        assert await get(http_port, "gateway") == 200
        with pytest.raises(grpc.aio.AioRpcError):
            await call(grpc_port, None)
        with pytest.raises(httpx.TransportError):
            await get(http_port, None)


async def test_a_certificate_that_cannot_be_used_ends_the_start(
    files: Path, vision: FakeVision, decoder: FakeDecoder
) -> None:
    """The sentence names the setting."""
    shutil.copy(files / "decoder/key.pem", files / "gateway/key.pem")
    settings = {
        "tier_ca": files / "ca.pem",
        "tier_cert": files / "gateway/cert.pem",
        "tier_key": files / "gateway/key.pem",
    }
    async with serve_fake(vision) as (one, _), serve_fake(decoder) as (other, _):
        with pytest.raises(StartError, match=r"^tier_key: .*/gateway/key.pem is not the key of the certificate in "):
            async with gateway(one, other, **settings):
                pass


@pytest.mark.parametrize(
    ("settings", "problem"),
    [({"tier_cert": "a", "tier_key": "b"}, "tier_cert needs tier_ca"), ({"tier_key": "b"}, "tier_key needs tier_cert")],
)
def test_half_of_the_settings_is_refused(settings: dict[str, Any], problem: str) -> None:
    """A setting that would have no effect is wrong usage."""
    with pytest.raises(ValueError, match=problem):
        GatewaySettings(**settings)
