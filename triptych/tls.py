"""TLS of a client's connection to a gateway."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from serving.tls import ClientTls, KeyPair, PemFile, TlsError
from serving.transport import INSECURE, Credentials


@dataclass(frozen=True)
class Tls:
    """TLS of a connection: PEM files.

    Attributes:
        ca: CA certificates that the gateway's certificate must be signed by; None: the public CAs that gRPC ships.
        cert: Certificate chain to present, for a gateway that requires one (`tls_client_ca`).
        key: Its private key.
    """

    ca: str | PathLike[str] | None = None
    cert: str | PathLike[str] | None = None
    key: str | PathLike[str] | None = None


def credentials_of(tls: Tls | None) -> Credentials:
    """The credentials of a connection; None: plain text.

    Raises:
        ValueError: A file cannot be used. The message is one sentence that names it.
    """
    if tls is None:
        return INSECURE
    if (tls.cert is None) != (tls.key is None):
        raise ValueError("a client certificate needs both cert and key")
    ca = None if tls.ca is None else PemFile("ca", Path(tls.ca))
    pair = None
    if tls.cert is not None and tls.key is not None:
        pair = KeyPair(PemFile("cert", Path(tls.cert)), PemFile("key", Path(tls.key)))
    try:
        return Credentials(ClientTls(ca, pair))
    except TlsError as error:
        raise ValueError(str(error)) from error
