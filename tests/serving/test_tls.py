"""TLS and mTLS of a server's ports: who gets in, renewal without a restart, and files that cannot be used."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from serving.errors import Code
from serving.server import StartError, serve
from serving.settings import ServerSettings
from serving.status import from_rpc_error
from serving.tls import ClientTls, KeyPair, PemFile, TlsError, read_authorities, read_identity
from serving.transport import INSECURE, Credentials, open_channel, open_metrics_port, service_options
from tests import certificates
from tests.serving.test_probe import probe
from tests.serving.test_server import Echo
from vlm.v1 import vision_pb2, vision_pb2_grpc

pytestmark = certificates.needs_openssl


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CA and certificates, which tests only read."""
    return certificates.make(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def files(made: Path, tmp_path: Path) -> Path:
    """The same, for a test that changes them."""
    return Path(shutil.copytree(made, tmp_path / "tls"))


def tls(directory: Path, name: str, *, mutual: bool = True, **more: Any) -> dict[str, Any]:
    """Settings of a server."""
    ca = {"tls_client_ca": directory / "ca.pem"} if mutual else {}
    return {"tls_cert": directory / f"{name}/cert.pem", "tls_key": directory / f"{name}/key.pem", **ca, **more}


@contextlib.asynccontextmanager
async def serving(**settings: Any) -> AsyncIterator[int]:
    """A server with these settings: its port."""
    service, stop = Echo(), asyncio.Event()
    port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(serve(service, ServerSettings(**settings), on_listening=port.set_result, stop=stop))
    await asyncio.wait([task, port], return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        await task  # raises why it did not start
    try:
        yield port.result()
    finally:
        service.release.set()
        stop.set()
        await task


async def call(port: int, credentials: Credentials, *, name: str = "") -> str:
    """The answer of the server, on a new connection."""
    options = service_options(authority=name)
    async with open_channel(f"localhost:{port}", options, credentials=credentials) as channel:
        return await greet(channel)


async def greet(channel: grpc.aio.Channel) -> str:
    """The answer on this channel."""
    stub = vision_pb2_grpc.VisionEncoderStub(channel)
    return str((await stub.GetEncoder(vision_pb2.GetEncoderRequest(), timeout=30)).model)


async def test_only_holders_of_a_certificate_get_in(made: Path, tmp_path: Path) -> None:
    """With a client CA: not in plain text, not without a certificate, not with one of another CA."""
    other = certificates.make(tmp_path / "other")
    foreign = Credentials(channel=ClientTls(certificates.authority(made), certificates.pair(other, "gateway")))
    async with serving(**tls(made, "vision")) as port:
        assert await call(port, certificates.client(made, "gateway")) == "echo"
        for wrong in (INSECURE, certificates.client(made), foreign):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(port, wrong)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert await call(port, certificates.client(made, "gateway")) == "echo"


async def test_a_client_that_expires_is_refused(made: Path, tmp_path: Path) -> None:
    """The server checks the time itself: this client presents an expired certificate without looking at it."""
    expired = Path(shutil.copytree(made, tmp_path / "expired"))
    certificates.make(expired, days=-1)

    class Careless(ClientTls):
        def __init__(self) -> None:
            cert, key = ((expired / f"gateway/{kind}.pem").read_bytes() for kind in ("cert", "key"))
            self._value = grpc.ssl_channel_credentials((made / "ca.pem").read_bytes(), key, cert)

        def current(self) -> grpc.ChannelCredentials:
            return self._value

    async with serving(**tls(made, "vision")) as port:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(port, Credentials(channel=Careless()))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_only_named_clients_may_call(made: Path) -> None:
    """Another service's certificate is PERMISSION_DENIED, for calls and reflection, but may read the health."""
    async with serving(**tls(made, "vision", tls_client_names="gateway, operator", reflection=True)) as port:
        assert await call(port, certificates.client(made, "gateway")) == "echo"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(port, certificates.client(made, "decoder"))
        error = from_rpc_error(caught.value)
        assert (error.code, error.reason) == (Code.PERMISSION_DENIED, "CLIENT_NOT_ALLOWED")
        environment = {"VISION_TLS_CERT": str(made / "vision/cert.pem"), "VISION_TLS_KEY": str(made / "vision/key.pem")}
        environment["VISION_TLS_CLIENT_CA"] = str(made / "ca.pem")
        assert await probe(f"127.0.0.1:{port}", "VISION_", **environment) == (0, "SERVING")


async def test_a_client_checks_the_name_of_the_server(made: Path) -> None:
    """A certificate for another name is refused, whoever signed it."""
    async with serving(**tls(made, "vision")) as port:
        own = certificates.client(made, "gateway")
        assert await call(port, own, name="vision") == "echo"
        with pytest.raises(grpc.aio.AioRpcError):
            await call(port, own, name="decoder")


async def test_certificates_are_renewed_on_both_sides_without_a_restart(files: Path) -> None:
    """New connections present the new certificates; a channel and its running call live on."""
    trusted = certificates.trusting(files, "gateway")
    own = certificates.client(files, "gateway")
    async with (
        serving(**tls(files, "vision")) as port,
        open_channel(f"localhost:{port}", credentials=own) as channel,
    ):
        before = await asyncio.to_thread(certificates.served_serial, "127.0.0.1", port, trusted)
        assert before == certificates.serial(files, "vision")
        running = vision_pb2_grpc.VisionEncoderStub(channel).Encode(vision_pb2.EncodeRequest(), timeout=60)
        assert isinstance(await running.read(), vision_pb2.EncodeResponse)

        # Another CA: whatever still presented or trusted the old certificates would fail.
        (files / "ca.key").unlink()
        certificates.make(files)
        assert await greet(channel) == "echo"
        trusted = certificates.trusting(files, "gateway")
        after = await asyncio.to_thread(certificates.served_serial, "127.0.0.1", port, trusted)
        assert after == certificates.serial(files, "vision") != before
        assert not running.done()
        running.cancel()

        (files / "vision/key.pem").write_text("half a file")
        assert await asyncio.to_thread(certificates.served_serial, "127.0.0.1", port, trusted) == after


def test_the_metrics_port_has_the_same_rules(files: Path) -> None:
    """Over TLS with a client certificate; a renewed one is used; a client that says nothing blocks nobody."""
    port = open_metrics_port("127.0.0.1", 0, credentials=certificates.server(files, "vision", mutual=True))
    url = f"https://localhost:{port}"

    def read(context: Any) -> bytes:
        with urllib.request.urlopen(url, timeout=30, context=context) as page:
            return bytes(page.read())

    with socket.create_connection(("127.0.0.1", port)):
        assert b"python_info" in read(certificates.trusting(files, "gateway"))
        with pytest.raises(OSError):  # noqa: PT011  # an alert, or a reset
            read(certificates.trusting(files))
        with pytest.raises(OSError):  # noqa: PT011
            urllib.request.urlopen(f"http://localhost:{port}", timeout=30)
        before = certificates.served_serial("127.0.0.1", port, certificates.trusting(files, "gateway"))
        certificates.make(files)
        after = certificates.served_serial("127.0.0.1", port, certificates.trusting(files, "gateway"))
        assert after == certificates.serial(files, "vision") != before
        with pytest.raises(OSError):  # noqa: PT011  # also with the renewed one
            read(certificates.trusting(files))


@pytest.mark.parametrize("client", [False, True])
def test_files_that_cannot_be_used_are_named(files: Path, client: bool) -> None:
    """Each error is one sentence with the setting, the file and what is wrong with it."""
    vision = certificates.pair(files, "vision")

    def message(cert: Path, key: Path) -> str:
        with pytest.raises(TlsError) as caught:
            read_identity(KeyPair(PemFile("tls_cert", cert), PemFile("tls_key", key)), client=client)
        return str(caught.value).replace(f"{files}/", "")

    cert, key = vision.cert.path, vision.key.path
    (files / "none.pem").write_text("nothing")
    certificates.openssl(
        "pkey", "-in", str(key), "-aes256", "-passout", "pass:secret", "-out", str(files / "locked.key")
    )
    assert message(files / "absent.pem", key) == "tls_cert: absent.pem cannot be read: No such file or directory"
    assert message(files, key) == f"tls_cert: {files} cannot be read: Is a directory"
    assert message(files / "none.pem", key) == "tls_cert: none.pem has no PEM certificate"
    assert message(cert, files / "none.pem") == "tls_key: none.pem has no PEM private key"
    assert (
        message(cert, files / "decoder/key.pem")
        == "tls_key: decoder/key.pem is not the key of the certificate in vision/cert.pem"
    )
    assert message(cert, files / "locked.key").startswith("tls_key: locked.key is encrypted; write the key without a")
    certificates.make(files, days=-1)
    assert message(cert, key) == "tls_cert: vision/cert.pem cannot be used: certificate has expired"
    with pytest.raises(TlsError, match=r"^tls_client_ca: .*/none.pem has no PEM certificate$"):
        read_authorities(PemFile("tls_client_ca", files / "none.pem"))


async def test_a_server_does_not_start_without_its_certificate(files: Path) -> None:
    """It ends with that sentence."""
    settings = tls(files, "vision")
    (files / "ca.pem").unlink()
    with pytest.raises(StartError, match=r"^tls_client_ca: .*/ca.pem cannot be read: No such file or directory$"):
        async with serving(**settings):
            pass


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"tls_cert": "a"}, "tls_cert needs tls_key"),
        ({"tls_key": "a"}, "tls_key needs tls_cert"),
        ({"tls_client_ca": "a"}, "tls_client_ca needs tls_cert and tls_key"),
        ({"tls_client_names": "gateway"}, "tls_client_names needs tls_client_ca"),
    ],
)
def test_half_of_the_settings_is_refused(settings: dict[str, Any], problem: str) -> None:
    """A setting that would have no effect is wrong usage."""
    with pytest.raises(ValueError, match=problem):
        ServerSettings(**settings)


@pytest.mark.parametrize(
    ("host", "internal", "expected"),
    [
        ("127.0.0.1", True, []),
        ("[::1]", True, []),
        ("0.0.0.0", True, ["set tls_cert and tls_key", "set tls_client_ca"]),  # noqa: S104
        ("0.0.0.0", False, ["set tls_cert and tls_key"]),  # noqa: S104
    ],
)
async def test_an_open_port_is_logged(
    host: str, internal: bool, expected: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A server that other hosts can reach names the settings that it lacks."""
    service, stop = Echo(), asyncio.Event()
    service.internal = internal
    await serve(service, ServerSettings(host=host), on_listening=lambda _: stop.set(), stop=stop)
    printed = "".join(capsys.readouterr())
    assert [part for part in ("set tls_cert and tls_key", "set tls_client_ca") if part in printed] == expected
