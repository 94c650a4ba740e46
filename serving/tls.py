"""TLS from PEM files: certificates that are read again when the files change, for servers and for channels."""

from __future__ import annotations

import contextlib
import ssl
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import grpc
import structlog

from serving import metrics
from serving.files import read_regular, signature

log = structlog.get_logger()

T = TypeVar("T")

_READS = 5
"""Attempts to read files that are being replaced meanwhile."""


class TlsError(Exception):
    """A PEM file cannot be used. The message is one sentence that names the setting and the file."""


@dataclass(frozen=True)
class PemFile:
    """A PEM file and the setting that names it.

    Attributes:
        setting: Name of the setting, for errors.
        path: The file.
    """

    setting: str
    path: Path

    def read(self) -> bytes:
        """The content. Raises TlsError."""
        try:
            return read_regular(self.path)
        except OSError as error:
            raise self.error(f"cannot be read: {error.strerror or error}") from error

    def error(self, what: str) -> TlsError:
        """An error about this file."""
        return TlsError(f"{self.setting}: {self.path} {what}")


@dataclass(frozen=True)
class KeyPair:
    """The files of a certificate chain, leaf first, and its private key."""

    cert: PemFile
    key: PemFile


@dataclass(frozen=True)
class Identity:
    """A certificate chain and its key, read and checked.

    Attributes:
        cert: The chain, PEM.
        key: The key, PEM.
        names: DNS names and IP addresses of the certificate; its common name if it has none.
    """

    cert: bytes
    key: bytes
    names: tuple[str, ...]


class Renewed(Generic[T]):
    """A value that is made from files, and made again when they change.

    `current` compares the files' status and needs no thread. If the new files cannot be used, the value stays what it
    is, and the cause is logged once.

    Args:
        files: The files.
        make: Makes the value. Raises TlsError.

    Raises:
        TlsError: From `make`.
    """

    def __init__(self, files: Sequence[PemFile], make: Callable[[], T]) -> None:
        self._files = files
        self._make = make
        self._lock = threading.Lock()
        self._signature, self._value = self._read()

    def current(self) -> T:
        """The value of the files as they are. Another object only if they have changed. Safe in any thread."""
        with self._lock:
            if self._status() != self._signature:
                status = self._status()
                settings = [file.setting for file in self._files]
                try:
                    self._signature, self._value = self._read()
                    log.info("certificate renewed", settings=settings)
                except TlsError as error:
                    self._signature = status
                    log.warning(
                        "certificate not renewed; the previous one stays in use", settings=settings, error=str(error)
                    )
            return self._value

    def _status(self) -> list[tuple[int, ...] | None]:
        return [signature(file.path) for file in self._files]

    def _read(self) -> tuple[list[tuple[int, ...] | None], T]:
        # The files are read one after another: repeat if one was replaced meanwhile.
        for _ in range(_READS):
            before = self._status()
            value = self._make()
            if before == self._status():
                break
        return before, value


def read_identity(pair: KeyPair, *, client: bool = False) -> Identity:
    """Read and check a certificate and its key.

    Args:
        pair: The files.
        client: Whether a client presents the certificate, not a server.

    Raises:
        TlsError: A file is unreadable or no PEM, the key is encrypted or another certificate's, or the certificate has
            expired or is not for this purpose.
    """
    cert, key = pair.cert.read(), pair.key.read()
    found = _examine(pair, client=client)
    alternatives = [value for kind, value in found.get("subjectAltName", ()) if kind in ("DNS", "IP Address")]
    common = [value for part in found.get("subject", ()) for kind, value in part if kind == "commonName"]
    metrics.CERTIFICATE_EXPIRES.labels(pair.cert.setting).set(ssl.cert_time_to_seconds(found["notAfter"]))
    return Identity(cert, key, tuple(alternatives or common))


def read_authorities(file: PemFile) -> bytes:
    """Read and check a file of CA certificates. Returns its content. Raises TlsError."""
    content = file.read()
    _trust(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), file)
    return content


def load(context: ssl.SSLContext, pair: KeyPair) -> None:
    """Load a certificate and its key into a context. Raises TlsError."""
    encrypted: list[bool] = []

    def password() -> str:  # without it OpenSSL would ask on the terminal
        encrypted.append(True)
        return ""

    try:
        context.load_cert_chain(pair.cert.path, pair.key.path, password)
    except (ssl.SSLError, OSError) as error:
        if encrypted:
            what = "is encrypted; write the key without a passphrase: openssl pkey -in OLD -out NEW"
            raise pair.key.error(what) from error
        if isinstance(error, ssl.SSLError) and error.reason == "KEY_VALUES_MISMATCH":
            raise pair.key.error(f"is not the key of the certificate in {pair.cert.path}") from error
        _trust(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), pair.cert)
        raise pair.key.error("has no PEM private key") from error


def _trust(context: ssl.SSLContext, file: PemFile) -> None:
    """Trust the certificates of a file. Raises TlsError."""
    try:
        context.load_verify_locations(file.path)
    except (ssl.SSLError, OSError) as error:
        raise file.error("has no PEM certificate") from error


def _examine(pair: KeyPair, *, client: bool) -> dict[str, Any]:
    """What `SSLSocket.getpeercert` returns of a certificate, from a handshake in memory with a peer that trusts it."""
    ends = [ssl.SSLContext(protocol) for protocol in (ssl.PROTOCOL_TLS_CLIENT, ssl.PROTOCOL_TLS_SERVER)]
    for context in ends:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        load(context, pair)
    checking = ends[1] if client else ends[0]
    checking.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    _trust(checking, pair.cert)
    checking.verify_mode = ssl.CERT_REQUIRED
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [ends[0].wrap_bio(back, there), ends[1].wrap_bio(there, back, server_side=True)]
    try:
        for _ in range(2):  # a client is done after the server's answer, a server after the client's next message
            for side in sides:
                with contextlib.suppress(ssl.SSLWantReadError):
                    side.do_handshake()
    except ssl.SSLCertVerificationError as error:
        raise pair.cert.error(f"cannot be used: {error.verify_message}") from error
    except ssl.SSLError as error:
        raise pair.cert.error(f"cannot be used: {error.reason}") from error
    return dict(sides[1 if client else 0].getpeercert() or {})


@dataclass(frozen=True)
class _Served:
    grpc: grpc.ServerCertificateConfiguration
    http: ssl.SSLContext


class ServerTls:
    """The certificate of a server's ports. New connections get the certificate that is in the files.

    Args:
        pair: Certificate and key.
        client_ca: CAs of the clients' certificates: only clients with such a certificate can connect; None: all can.

    Raises:
        TlsError: A file cannot be used.
    """

    def __init__(self, pair: KeyPair, client_ca: PemFile | None = None) -> None:
        self._pair = pair
        self._client_ca = client_ca
        self.needs_client_certificate = client_ca is not None
        files = [pair.cert, pair.key, *([] if client_ca is None else [client_ca])]
        self._renewed = Renewed(files, self._make)

    def _make(self) -> _Served:
        identity = read_identity(self._pair)
        authorities = None if self._client_ca is None else read_authorities(self._client_ca)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        load(context, self._pair)
        if self._client_ca is not None:
            _trust(context, self._client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
        config = grpc.ssl_server_certificate_configuration([(identity.key, identity.cert)], authorities)
        return _Served(config, context)

    def grpc(self) -> grpc.ServerCredentials:
        """Credentials of gRPC ports."""
        sent = self._renewed.current()

        def newer() -> grpc.ServerCertificateConfiguration | None:  # called at each new connection
            nonlocal sent
            before, sent = sent, self._renewed.current()
            return None if sent is before else sent.grpc

        return grpc.dynamic_ssl_server_credentials(sent.grpc, newer, self.needs_client_certificate)  # type: ignore[arg-type]  # may be None

    def files(self) -> dict[str, Any]:
        """The files, as arguments of `prometheus_client.start_http_server`."""
        return {
            "certfile": str(self._pair.cert.path),
            "keyfile": str(self._pair.key.path),
            "client_cafile": None if self._client_ca is None else str(self._client_ca.path),
            "client_auth_required": self.needs_client_certificate,
        }

    def http(self) -> ssl.SSLContext:
        """Context of HTTP ports."""
        context = self._renewed.current().http
        self.follow(context)
        return context

    def follow(self, context: ssl.SSLContext) -> None:
        """Have each new connection of a context use the newest certificate."""

        def newest(connection: ssl.SSLObject, name: str, _: ssl.SSLContext) -> None:  # called in each handshake
            connection.context = self._renewed.current().http

        context.sni_callback = newest
        # A resumed session would skip the check of the client's certificate.
        context.num_tickets = 0
        context.options |= ssl.OP_NO_TICKET


class ClientTls:
    """The credentials of channels: whom to trust, and the certificate to present.

    Args:
        ca: CAs of the servers' certificates; None: those that gRPC trusts by default.
        pair: The certificate to present and its key; None: none.

    Raises:
        TlsError: A file cannot be used.
    """

    def __init__(self, ca: PemFile | None = None, pair: KeyPair | None = None) -> None:
        self._ca = ca
        self._pair = pair
        files = [*([] if ca is None else [ca]), *([] if pair is None else [pair.cert, pair.key])]
        self._renewed = Renewed(files, self._make)

    def _make(self) -> grpc.ChannelCredentials:
        ca = None if self._ca is None else read_authorities(self._ca)
        if self._pair is None:
            return grpc.ssl_channel_credentials(ca)
        own = read_identity(self._pair, client=True)
        return grpc.ssl_channel_credentials(ca, own.key, own.cert)

    def current(self) -> grpc.ChannelCredentials:
        """The credentials of the files as they are. Another object only if they have changed."""
        return self._renewed.current()
