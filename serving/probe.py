"""Read a server's health: `python -m serving.probe HOST:PORT`, for the health checks of containers.

Exit codes: 0 SERVING; 1 any other status, or no answer; 2 wrong usage. The status is printed as one line.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serving.transport import HEALTH_OPTIONS, open_blocking_channel

SERVING = "SERVING"


def ask(address: str, *, seconds: float = 5.0) -> str:
    """Read the status of a server as a whole from its health service.

    Args:
        address: `host:port`.
        seconds: How long to wait for an answer.

    Returns:
        The name of the status, such as `SERVING`; without an answer, the cause.
    """
    with open_blocking_channel(address, HEALTH_OPTIONS) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            reply = stub.Check(health_pb2.HealthCheckRequest(), timeout=seconds)  # type: ignore[attr-defined]
        except grpc.RpcError as error:
            return f"no answer: {error.code().name}: {error.details()}"
    return health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)


def main(arguments: Sequence[str]) -> int:
    """Read and print the status of the address in `arguments`. Returns the exit code."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python -m serving.probe HOST:PORT", file=sys.stderr)  # noqa: T201
        return 2
    status = ask(arguments[0])
    print(status)  # noqa: T201
    return 0 if status == SERVING else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
