"""Sends changed requests to both doors of `triptych up`, counts what comes back, and then runs Schemathesis."""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import httpx
from google.protobuf import text_format
from hypothesis import HealthCheck, given, seed, settings
from hypothesis.strategies import SearchStrategy

from tests.clients.checks import Client, InstallError, System, environment, say, system
from tests.fuzz.doors import ask_grpc, ask_http
from tests.fuzz.requests import VALID_BODIES, VALID_CHATS, bodies, chats
from vlm.v1 import gateway_pb2, gateway_pb2_grpc

SCHEMATHESIS = Client("schemathesis", "", pip=("schemathesis==4.32.5",))
_CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


def send(requests: SearchStrategy[Any], ask: Callable[[Any], str], options: argparse.Namespace) -> bool:
    """Send requests to a door; prints what came of them, and each that failed. Returns whether none did.

    Args:
        requests: Those to send.
        ask: Sends one.
        options: How many, and the seed.
    """
    seen: collections.Counter[str] = collections.Counter()

    @seed(options.seed)
    @settings(max_examples=options.examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(requests)
    def each(request: Any) -> None:
        try:
            seen[ask(request) or "answered"] += 1
        except Exception as error:  # noqa: BLE001  # all are to be seen, not the first alone
            seen["FAILED"] += 1
            shown = request if isinstance(request, dict) else text_format.MessageToString(request)
            say(f"FAILED {type(error).__name__}: {error}\n  {str(shown)[:2000]}")

    each()
    say("  ".join(f"{name} {count}" for name, count in seen.most_common()))
    return not seen["FAILED"]


def over_grpc(served: System, options: argparse.Namespace) -> bool:
    """Send ChatRequests, and then valid ones. Returns whether all went well."""
    say(f"gRPC, seed {options.seed} …")
    with grpc.insecure_channel(served.grpc) as channel:
        stub = gateway_pb2_grpc.GatewayStub(channel)

        def ask(request: gateway_pb2.ChatRequest) -> str:
            return ask_grpc(stub, request)

        return send(chats(), ask, options) and all(ask(request) == "" for request in VALID_CHATS)


def over_http(served: System, options: argparse.Namespace) -> bool:
    """The same in JSON."""
    say(f"HTTP, seed {options.seed} …")
    with httpx.Client(base_url=served.http) as client:

        def ask(body: Any) -> str:
            return ask_http(client, json.dumps(body).encode())

        schemas = client.get("/openapi.json").json()["components"]["schemas"]
        return send(bodies(schemas), ask, options) and all(ask(body) == "" for body in VALID_BODIES)


def schemathesis(served: System, options: argparse.Namespace, cache: Path) -> bool:
    """Run Schemathesis on /openapi.json. Returns whether it found nothing."""
    say("Schemathesis …")
    try:
        program = environment(SCHEMATHESIS, cache) / "venv" / "bin" / "schemathesis"
    except InstallError as error:
        say(f"FAILED: not installed: {error}")
        return False
    words = ["run", f"{served.http}/openapi.json", "--checks", _CHECKS, "--phases", "coverage,fuzzing", "--no-color"]
    # A request of its kind may be large: what is slow is no finding.
    words += ["--max-examples", str(options.examples), "--seed", str(options.seed), "--suppress-health-check", "all"]
    done = subprocess.run([program, *words], cwd=cache, check=False)
    return done.returncode == 0


def main(words: Sequence[str] | None = None) -> int:
    """Run the checks. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="tests/fuzz/run", description=__doc__)
    parser.add_argument("--examples", type=int, default=1000, help="requests at each door")
    parser.add_argument("--seed", type=int, default=secrets.randbits(32), help="to send the same requests again")
    parser.add_argument("--cache", type=Path, help="folder for Schemathesis, kept for the next time")
    parser.add_argument("--no-schemathesis", action="store_true", help="leave it out")
    options = parser.parse_args(words)
    with contextlib.ExitStack() as stack:
        cache = options.cache or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        served = stack.enter_context(system())
        passed = {"gRPC": over_grpc(served, options), "HTTP": over_http(served, options)}
        if not options.no_schemathesis:
            passed["Schemathesis"] = schemathesis(served, options, cache.resolve())
    say("  ".join(f"{name} {'ok' if well else 'FAILED'}" for name, well in passed.items()))
    return 0 if all(passed.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
