"""Channels and ports: their credentials, their interceptors, and that nothing else opens them."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import socket
import ssl
import subprocess
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
    Certificate,
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

ROOT = Path(__file__).parents[2]
PACKAGES = ("serving", "gateway", "vision_service", "decoder_service", "triptych")

# Local credentials need no keys: they are bound to the loopback and to no certificate.
LOCAL = Credentials(
    grpc.local_channel_credentials(grpc.LocalConnectionType.LOCAL_TCP),
    grpc.local_server_credentials(grpc.LocalConnectionType.LOCAL_TCP),
)


class _Witness(health_pb2_grpc.HealthServicer):
    """Notes how each call came."""

    def __init__(self) -> None:
        self.security: list[bytes] = []
        self.marks: list[str] = []

    async def Check(self, request: Any, context: Any) -> health_pb2.HealthCheckResponse:
        self.security += context.auth_context().get("transport_security_type", [b"none"])
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


@pytest.mark.parametrize(("credentials", "expected"), [(INSECURE, b"insecure"), (LOCAL, b"local")])
async def test_both_ends_use_the_credentials(credentials: Credentials, expected: bytes) -> None:
    """Credentials reach the server's port and both kinds of channels; without any the connection is plain text."""
    async with _listening(credentials) as (witness, address):
        async with open_channel(address, HEALTH_OPTIONS, credentials=credentials) as channel:
            await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=30)

        def ask() -> None:
            with open_blocking_channel(address, client_options(address), credentials=credentials) as channel:
                health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=30)

        await asyncio.to_thread(ask)
    assert witness.security == [expected, expected]


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


@pytest.mark.skipif(shutil.which("openssl") is None, reason="a certificate is made with openssl")
def test_metrics_are_served_over_tls(tmp_path: Path) -> None:
    """With a certificate the metrics port accepts only TLS; without one it is plain text."""
    certificate = Certificate(str(tmp_path / "cert.pem"), str(tmp_path / "key.pem"))
    subprocess.run(
        [
            str(shutil.which("openssl")),
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/"),
            *("-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", f"{certificate.keyfile}", "-out", f"{certificate.certfile}"),
        ],
        check=True,
        capture_output=True,
    )
    trusted = ssl.create_default_context(cafile=certificate.certfile)
    plain = open_metrics_port("127.0.0.1", 0)
    encrypted = open_metrics_port("127.0.0.1", 0, credentials=Credentials(http=certificate))
    for url in (f"http://127.0.0.1:{plain}", f"https://127.0.0.1:{encrypted}"):
        with urllib.request.urlopen(url, timeout=30, context=trusted if url.startswith("https") else None) as page:  # noqa: S310
            assert b"python_info" in page.read()
    with pytest.raises(OSError):  # noqa: PT011  # a reset, or an empty answer
        urllib.request.urlopen(f"http://127.0.0.1:{encrypted}", timeout=30)


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
