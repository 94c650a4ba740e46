"""Certificates for tests, made by `deploy/certificates.sh`, which the pages recommend."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import subprocess
from pathlib import Path

import pytest

from serving.tls import ClientTls, KeyPair, PemFile, ServerTls
from serving.transport import Credentials

SCRIPT = Path(__file__).parents[1] / "deploy" / "certificates.sh"

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="certificates are made with openssl")


def make(directory: Path, *names: str, days: int = 2) -> Path:
    """Make a CA, unless it is there, and new certificates."""
    environment = {**os.environ, "DAYS": str(days)}
    subprocess.run([str(SCRIPT), str(directory), *names], check=True, env=environment, capture_output=True)
    return directory


def pair(directory: Path, name: str) -> KeyPair:
    """The files of one of the certificates."""
    return KeyPair(
        PemFile("tls_cert", directory / f"{name}/cert.pem"), PemFile("tls_key", directory / f"{name}/key.pem")
    )


def authority(directory: Path) -> PemFile:
    """The file of the CA."""
    return PemFile("tls_client_ca", directory / "ca.pem")


def server(directory: Path, name: str, *, mutual: bool = False) -> Credentials:
    """Credentials of a server; mutual: clients must have a certificate of the same CA."""
    return Credentials(server=ServerTls(pair(directory, name), authority(directory) if mutual else None))


def client(directory: Path, name: str | None = None) -> Credentials:
    """Credentials of a client that trusts the CA, with or without a certificate of its own."""
    return Credentials(channel=ClientTls(authority(directory), None if name is None else pair(directory, name)))


def trusting(directory: Path, name: str | None = None) -> ssl.SSLContext:
    """The same for HTTP."""
    context = ssl.create_default_context(cafile=str(directory / "ca.pem"))
    if name is not None:
        context.load_cert_chain(directory / f"{name}/cert.pem", directory / f"{name}/key.pem")
    return context


def serial(directory: Path, name: str) -> str:
    """The serial number of a certificate, in hexadecimal digits."""
    return (
        openssl("x509", "-in", str(directory / f"{name}/cert.pem"), "-noout", "-serial").strip().removeprefix("serial=")
    )


def openssl(*arguments: str) -> str:
    """What openssl prints."""
    command = [shutil.which("openssl") or "openssl", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def served_serial(host: str, port: int, context: ssl.SSLContext) -> str:
    """The serial number of the certificate that a port presents on a new connection."""
    with (
        socket.create_connection((host, port), timeout=30) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        return str((connection.getpeercert() or {})["serialNumber"])
