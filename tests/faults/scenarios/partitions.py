"""Packets between two sides are dropped for some seconds, under steady load."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from tests.faults.asking import Load
from tests.faults.bench import Bench, Row
from tests.faults.network import CLIENTS, NetworkError, network
from tests.faults.scenarios.replicas import MIDWAY
from tests.faults.services import Plan

REPLICAS = {"vision_service": 2, "decoder_service": 2, "gateway": 2}

PAIRS: dict[str, Sequence[tuple[str, str]]] = {
    "gateway-vision": [("gateway0", "vision0"), ("gateway1", "vision0")],
    "gateway-decoder": [("gateway0", "decoder0"), ("gateway1", "decoder0")],
    "client-gateway": [(CLIENTS, "gateway0")],
    "gateway-both-visions": [(f"gateway{g}", f"vision{v}") for g in range(2) for v in range(2)],
    "gateway-both-decoders": [(f"gateway{g}", f"decoder{d}") for g in range(2) for d in range(2)],
}
"""What is parted: one replica from all gateways, the clients from one of two gateways, or a whole tier."""

_ALLOWED = {
    "gateway-decoder": MIDWAY,
    "gateway-both-visions": ("VISION_UNAVAILABLE",),
    "gateway-both-decoders": MIDWAY,
}


async def partition(bench: Bench, pair: str) -> Row:
    """Each process in a network namespace of its own."""
    name = f"partition-{pair}"
    with contextlib.ExitStack() as stack:
        try:
            net, hosts = stack.enter_context(network(REPLICAS))
        except NetworkError as error:
            return Row(name, skipped=str(error))
        async with bench.own(Plan(bench.bundle, gateways=2), name, hosts) as deployment:

            async def fault(load: Load) -> None:
                for one, other in PAIRS[pair]:
                    net.cut(one, other)
                try:
                    await asyncio.sleep(bench.lengths.partition)
                finally:
                    for one, other in PAIRS[pair]:
                        net.heal(one, other)

            whole = "both" in pair
            return await bench.under_load(
                name, deployment, fault, allowed=_ALLOWED.get(pair, ()), cut=pair.startswith("client"),
                since="end" if whole else "fault",
            )  # fmt: skip
