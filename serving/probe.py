"""Read a server's health: `python -m serving.probe HOST:PORT [PREFIX]`, for the health checks of containers.

PREFIX is that of the server's environment variables, as `VISION_`: with its `tls_…` settings the probe uses TLS. It
then trusts the server's own certificate. With `tls_client_ca` it also presents it, so it must be signed by that CA.

Exit codes: 0 SERVING; 1 any other status, or no answer; 2 wrong usage. The status is printed as one line.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serving.tls import ClientTls, KeyPair, PemFile, TlsError, read_identity
from serving.transport import HEALTH_OPTIONS, INSECURE, Credentials, open_blocking_channel

SERVING = "SERVING"

_PREFIX = re.compile(r"[A-Z]+_")


def credentials_of(environment: Mapping[str, str], prefix: str) -> tuple[Credentials, str | None]:
    """Credentials for calls to a server on this machine, and the name that its certificate has.

    Args:
        environment: Environment of the server.
        prefix: Prefix of its variables, as `VISION_`.

    Raises:
        TlsError: Its certificate cannot be used.
    """
    cert, key, client_ca = (environment.get(f"{prefix}TLS_{name}") for name in ("CERT", "KEY", "CLIENT_CA"))
    if not cert or not key:
        return INSECURE, None
    file = PemFile(f"{prefix}TLS_CERT", Path(cert))
    pair = KeyPair(file, PemFile(f"{prefix}TLS_KEY", Path(key)))
    name = read_identity(pair).names[0].replace("*", "probe")
    return Credentials(ClientTls(file, pair if client_ca else None)), name


def ask(
    address: str, *, credentials: Credentials = INSECURE, server_name: str | None = None, seconds: float = 5.0
) -> str:
    """Read the status of a server as a whole from its health service.

    Args:
        address: `host:port`.
        credentials: Of the call.
        server_name: Name that the server's certificate must have.
        seconds: How long to wait for an answer.

    Returns:
        The name of the status, such as `SERVING`; without an answer, the cause.
    """
    with open_blocking_channel(address, HEALTH_OPTIONS, credentials=credentials, server_name=server_name) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            reply = stub.Check(health_pb2.HealthCheckRequest(), timeout=seconds)  # type: ignore[attr-defined]
        except grpc.RpcError as error:
            return f"no answer: {error.code().name}: {error.details()}"
    return health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)


def main(arguments: Sequence[str]) -> int:
    """Read and print the status of the address in `arguments`. Returns the exit code."""
    address, prefix = (*arguments, "")[:2] if len(arguments) in (1, 2) else ("-", "")
    if address.startswith("-") or (prefix and not _PREFIX.fullmatch(prefix)):
        print("usage: python -m serving.probe HOST:PORT [PREFIX]", file=sys.stderr)  # noqa: T201
        return 2
    try:
        credentials, name = credentials_of(os.environ, prefix)
        status = ask(address, credentials=credentials, server_name=name)
    except TlsError as error:
        status = f"no answer: {error}"
    print(status)  # noqa: T201
    return 0 if status == SERVING else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
