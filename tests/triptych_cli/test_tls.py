"""The clients over TLS: the library, blocking and on asyncio, and `triptych ask`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import triptych
from tests import certificates
from tests.triptych.scripted import Context, answered, playing
from triptych_cli import main as cli
from vlm.v1 import chat_pb2, gateway_pb2

pytestmark = certificates.needs_openssl


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CA and certificates."""
    return certificates.make(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def address(files: Path) -> Iterator[str]:
    """A gateway that only holders of a certificate can call."""
    with playing(_play, credentials=certificates.server(files, "door", mutual=True)) as server:
        yield server.address


def _play(request: gateway_pb2.ChatRequest, context: Context) -> Iterator[chat_pb2.ChatEvent]:
    yield from answered("A cat.")


def _tls(files: Path) -> triptych.Tls:
    return triptych.Tls(files / "ca.pem", files / "gateway/cert.pem", str(files / "gateway/key.pem"))


async def test_both_clients(files: Path, address: str) -> None:
    """With the CA and a certificate of their own they get an answer."""
    with triptych.Client(address, tls=_tls(files)) as client:
        assert client.models() == ["m"]
    async with triptych.AsyncClient(address, tls=_tls(files)) as other:
        assert (await other.answer("Hello")).text == "A cat."


def test_a_client_without_the_right_files(files: Path, address: str) -> None:
    """Not in plain text, not with public CAs, not without a certificate: UNAVAILABLE."""
    for tls in (None, triptych.Tls(), triptych.Tls(files / "ca.pem")):
        with triptych.Client(address, tls=tls, retries=0) as client, pytest.raises(triptych.TriptychError) as caught:
            client.models()
        assert caught.value.code is triptych.Code.UNAVAILABLE


def test_files_that_cannot_be_used_are_a_value_error(files: Path) -> None:
    """At once, in one sentence."""
    with pytest.raises(ValueError, match="needs both cert and key"):
        triptych.Client(tls=triptych.Tls(files / "ca.pem", files / "gateway/cert.pem"))
    with pytest.raises(ValueError, match=r"^ca: .*/gateway/key.pem has no PEM certificate$"):
        triptych.Client(tls=triptych.Tls(files / "gateway/key.pem"))


def test_ask(files: Path, address: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The flags name the files; what is wrong is one line, exit code 1."""
    own = ["--tls-cert", str(files / "gateway/cert.pem"), "--tls-key", str(files / "gateway/key.pem")]
    ca = ["--tls-ca", str(files / "ca.pem")]
    ask = ["ask", "Hello", "--address", address]
    assert cli.main([*ask, *ca, *own]) == 0
    assert capsys.readouterr().out == "A cat.\n"
    for flags, said in (
        ([], f"triptych: the port at {address} speaks TLS: add --tls"),
        (["--tls", *own], "CERTIFICATE_VERIFY_FAILED"),
        (["--tls-ca", "absent"], "triptych: TLS: ca: absent cannot be read: No such file or directory"),
        ([*ca, *own[:2]], "triptych: TLS: a client certificate needs both cert and key"),
    ):
        assert cli.main([*ask, *flags]) == 1
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
