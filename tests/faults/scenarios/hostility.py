"""The hostile round, beside a steady load that must not notice."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import httpx
from hypothesis import HealthCheck, given, seed, settings

from tests.faults.asking import Load
from tests.faults.bench import Bench, Row
from tests.faults.hostile import (
    MIB,
    Round,
    bombed,
    bombs,
    decoder_calls,
    gateway_calls,
    http_tricked,
    malformed_tensors,
    mutated,
    oversized,
    vision_calls,
)
from tests.faults.services import Deployment
from tests.fuzz.doors import ask_grpc, ask_http
from tests.fuzz.requests import bodies, chats
from vlm.v1 import gateway_pb2_grpc

_LIMIT = 128 * MIB
"""`max_message_bytes` by default."""

Attack = Callable[[Deployment, Bench], Awaitable[Round]]


def _picture(bench: Bench) -> bytes:
    return next(question.picture for question in bench.answers if question.picture)


def _changed(requests: Any, ask: Callable[[Any], str], many: int) -> Round:
    """Requests of tests/fuzz, one after the other."""
    found = Round()

    @seed(1)
    @settings(max_examples=many, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(requests)
    def each(request: Any) -> None:
        try:
            found.seen[ask(request) or "answered"] += 1
        except Exception as error:  # noqa: BLE001  # all are to be seen, not the first alone
            found.fault(f"{type(error).__name__}: {error}")

    each()
    return found


async def _chats(deployment: Deployment, bench: Bench) -> Round:
    def work() -> Round:
        with grpc.insecure_channel(deployment.gateways.grpc[0]) as channel:
            stub = gateway_pb2_grpc.GatewayStub(channel)
            return _changed(chats(), lambda request: ask_grpc(stub, request), bench.lengths.mutations)

    return await asyncio.to_thread(work)


async def _bodies(deployment: Deployment, bench: Bench) -> Round:
    def work() -> Round:
        with httpx.Client(base_url=deployment.gateways.http[0], trust_env=False) as client:
            schemas = client.get("/openapi.json").json()["components"]["schemas"]
            send = lambda body: ask_http(client, json.dumps(body).encode())  # noqa: E731
            return _changed(bodies(schemas), send, bench.lengths.mutations)

    return await asyncio.to_thread(work)


async def _bytes(deployment: Deployment, bench: Bench) -> Round:
    whole = Round()
    picture, many = _picture(bench), bench.lengths.mutations
    for address, calls in (
        (deployment.gateways.grpc[0], gateway_calls(picture)),
        (deployment.vision[0].address, vision_calls(picture)),
        (deployment.decoders[0].address, decoder_calls()),
    ):
        found = await mutated(address, calls, many)
        whole.seen += found.seen
        whole.faults += found.faults
    return whole


async def _oversized(deployment: Deployment, bench: Bench) -> Round:
    whole = Round()
    for address, method in (
        (deployment.gateways.grpc[0], "/vlm.v1.Gateway/Chat"),
        (deployment.vision[0].address, "/vlm.v1.VisionEncoder/Encode"),
        (deployment.decoders[0].address, "/vlm.v1.Decoder/Generate"),
    ):
        found = await oversized(address, method, _LIMIT)
        whole.seen += found.seen
        whole.faults += found.faults
    return whole


async def _bombs(deployment: Deployment, bench: Bench) -> Round:
    files = await asyncio.to_thread(bombs)
    whole = await bombed(deployment.gateways.grpc[0], files, gateway=True)
    found = await bombed(deployment.vision[0].address, files, gateway=False)
    whole.seen += found.seen
    whole.faults += found.faults
    return whole


async def _tensors(deployment: Deployment, bench: Bench) -> Round:
    return await malformed_tensors(deployment.vision[0].address, deployment.decoders[0].address, _picture(bench))


async def _tricks(deployment: Deployment, bench: Bench) -> Round:
    return await http_tricked(deployment.gateways.http[0])


ATTACKS: dict[str, Attack] = {
    "chats": _chats,
    "bodies": _bodies,
    "bytes": _bytes,
    "oversized": _oversized,
    "bombs": _bombs,
    "tensors": _tensors,
    "http": _tricks,
}
"""Changed requests at both doors; changed bytes and messages that are too large at every port; the rest by name."""


async def hostile(bench: Bench, attack: str) -> Row:
    """One kind of attack, beside four honest clients."""
    deployment = await bench.shared()
    found = Round()

    async def fault(load: Load) -> None:
        nonlocal found
        found = await ATTACKS[attack](deployment, bench)

    row = await bench.under_load(f"hostile-{attack}", deployment, fault, clients=4)
    row.figures |= {"attacks": sum(found.seen.values()), **dict(found.seen.most_common(6))}
    row.problems += found.faults[:5]
    if len(found.faults) > 5:
        row.problems.append(f"and {len(found.faults) - 5} more of {sum(found.seen.values())}")
    return row
