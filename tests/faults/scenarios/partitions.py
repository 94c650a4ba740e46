"""Packets between two sides are dropped for some seconds, under steady load."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from tests.faults.asking import Load
from tests.faults.bench import Bench, Row
from tests.faults.network import CLIENTS, NetworkError
from tests.faults.scenarios.replicas import MIDWAY

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
    try:
        deployment, net = await bench.parted()
    except NetworkError as error:
        return Row(name, skipped=str(error))

    async def fault(load: Load) -> None:
        for one, other in PAIRS[pair]:
            net.cut(one, other)
        try:
            await asyncio.sleep(bench.lengths.partition)
        finally:
            for one, other in PAIRS[pair]:
                net.heal(one, other)

    allowed, whole = _ALLOWED.get(pair, ()), "both" in pair
    return await bench.under_load(
        name, deployment, fault, allowed=allowed, cut=pair.startswith("client"), since="end" if whole else "fault"
    )
