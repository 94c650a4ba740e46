"""Channels and ports: their credentials, their interceptors, and that nothing else opens them."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serving import transport
from serving.transport import (
    HEALTH_OPTIONS,
    INSECURE,
    Credentials,
    PortError,
    ReservedPorts,
    client_options,
    open_blocking_channel,
    open_channel,
    open_http_port,
    open_metrics_port,
    open_port,
)
from tests import certificates

ROOT = Path(__file__).parents[2]
PACKAGES = ("serving", "gateway", "vision_service", "decoder_service", "triptych")


class _Witness(health_pb2_grpc.HealthServicer):
    """Notes how each call came."""

    def __init__(self) -> None:
        self.security: list[bytes] = []
        self.marks: list[str] = []
        self.clients: list[bytes] = []

    async def Check(self, request: Any, context: Any) -> health_pb2.HealthCheckResponse:
        self.security += context.auth_context().get("transport_security_type", [b"none"])
        self.clients += context.auth_context().get("x509_pem_cert", [])
        self.marks += [value for key, value in context.invocation_metadata() if key == "mark"]
        return health_pb2.HealthCheckResponse()


@contextlib.asynccontextmanager
async def _listening(credentials: Credentials) -> AsyncIterator[tuple[_Witness, str]]:
    witness, server = _Witness(), grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(witness, server)
    port = open_port(server, "127.0.0.1", 0, credentials=credentials)
    await server.start()
    try:
        yield witness, f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


@pytest.mark.parametrize("expected", [b"insecure", pytest.param(b"ssl", marks=certificates.needs_openssl)])
async def test_both_ends_use_the_credentials(expected: bytes, tmp_path: Path) -> None:
    """Credentials reach the server's port and both kinds of channels; without any the connection is plain text."""
    credentials = INSECURE
    if expected == b"ssl":
        made = certificates.make(tmp_path)
        ends = certificates.client(made, "gateway"), certificates.server(made, "vision", mutual=True)
        credentials = Credentials(ends[0].channel, ends[1].server)
    async with _listening(credentials) as (witness, address):
        async with open_channel(address, HEALTH_OPTIONS, credentials=credentials) as channel:
            await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=30)

        def ask() -> None:
            with open_blocking_channel(address, client_options(address), credentials=credentials) as channel:
                health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=30)

        await asyncio.to_thread(ask)
    assert witness.security == [expected, expected]


@certificates.needs_openssl
async def test_a_channel_presents_a_renewed_certificate(tmp_path: Path) -> None:
    """An open channel's next call arrives with the new certificate; with files that are wrong, with the old one."""
    made = certificates.make(tmp_path)
    pem = made / "gateway/cert.pem"
    async with (
        _listening(certificates.server(made, "vision", mutual=True)) as (witness, address),
        open_channel(address, HEALTH_OPTIONS, credentials=certificates.client(made, "gateway")) as channel,
    ):
        stub = health_pb2_grpc.HealthStub(channel)
        await stub.Check(health_pb2.HealthCheckRequest(), timeout=30)
        first = pem.read_bytes()
        certificates.make(made)
        await stub.Check(health_pb2.HealthCheckRequest(), timeout=30)
        second = pem.read_bytes()
        pem.unlink()
        await stub.Check(health_pb2.HealthCheckRequest(), timeout=30)
    assert witness.clients == [first, second, second]
    assert first != second


class _Mark(grpc.aio.UnaryUnaryClientInterceptor):
    def __init__(self, mark: str) -> None:
        self._mark = mark

    async def intercept_unary_unary(
        self, continuation: Callable[..., Awaitable[Any]], client_call_details: grpc.aio.ClientCallDetails, request: Any
    ) -> Any:
        metadata = client_call_details.metadata or grpc.aio.Metadata()
        metadata.add("mark", self._mark)
        return await continuation(client_call_details._replace(metadata=metadata), request)


async def test_interceptors_run_in_their_order() -> None:
    """Each of the list sees the call, the first before the second."""
    async with (
        _listening(INSECURE) as (witness, address),
        open_channel(address, HEALTH_OPTIONS, interceptors=[_Mark("a"), _Mark("b")]) as channel,
    ):
        await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=30)
    assert witness.marks == ["a", "b"]


async def test_a_taken_port_is_one_sentence() -> None:
    """Whatever a port is for, the failure names its address."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        for open_it, cause in (
            (lambda: open_port(grpc.aio.server(options=[("grpc.so_reuseport", 0)]), "127.0.0.1", port), ""),
            (lambda: open_http_port("127.0.0.1", port), " for HTTP (Address already in use"),
            (lambda: open_metrics_port("127.0.0.1", port), " for metrics (Address already in use"),
        ):
            with pytest.raises(PortError) as caught:
                open_it()
            said = str(caught.value)
            assert said.startswith(f"cannot listen on 127.0.0.1:{port}{cause}")
            assert said.endswith("; is the port taken by another process?")


def test_reserved_ports_are_distinct_and_then_free() -> None:
    """Reserved ports differ; a reserved one cannot be opened before `release`, and can be afterwards."""
    ports = ReservedPorts("127.0.0.1")
    first, second = ports.reserve(), ports.reserve()
    assert first != second
    with pytest.raises(PortError, match=f"cannot listen on 127.0.0.1:{first} "):
        ports.reserve(first)
    ports.release()
    with open_http_port("127.0.0.1", first):
        pass


_OPENS = re.compile(r"\b((in)?secure_channel|add_(in)?secure_port|create_server|start_http_server|socket\.socket)\(")


def test_nothing_else_opens_channels_and_ports() -> None:
    """`serving.transport` is the one module that opens them (which shows that the pattern finds them)."""
    found = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if _OPENS.search(path.read_text(encoding="utf-8"))
    }
    assert found == {"serving/transport.py"}


def test_idle_connections_to_the_metrics_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silent ones over the limit are closed at once, the others in time; then the metrics are there."""
    monkeypatch.setattr(transport, "_METRICS_SECONDS", 0.5)
    port = open_metrics_port("127.0.0.1", 0)
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(20)]
        assert [client.recv(1) for client in silent] == [b""] * 20
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as response:
            assert response.status == 200
