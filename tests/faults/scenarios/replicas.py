"""A replica dies, freezes, or is restarted, under steady load."""

from __future__ import annotations

import asyncio
import signal

from tests.faults.asking import Load
from tests.faults.bench import Bench, Row
from tests.faults.services import Deployment, Replica

MIDWAY = ("DECODER_UNAVAILABLE",)
"""What a client gets whose decoder is lost after the first token."""

_DEAD_SECONDS = 5.0


def _first(deployment: Deployment, tier: str) -> Replica:
    return {"vision": deployment.vision, "decoder": deployment.decoders, "gateway": deployment.gateways_list}[tier][0]


async def kill(bench: Bench, tier: str) -> Row:
    """Kill -9 of one replica, which comes back after five seconds."""
    deployment = await bench.shared(gateways=2)
    replica = _first(deployment, tier)

    async def fault(load: Load) -> None:
        replica.kill()
        await asyncio.sleep(_DEAD_SECONDS)
        replica.start()
        await replica.serving()

    allowed = MIDWAY if tier == "decoder" else ()
    return await bench.under_load(f"kill-{tier}", deployment, fault, allowed=allowed, cut=tier == "gateway")


async def freeze(bench: Bench, tier: str) -> Row:
    """SIGSTOP of one replica: its connections stay open and nothing answers. SIGCONT later."""
    deployment = await bench.shared(gateways=2)
    replica = _first(deployment, tier)

    async def fault(load: Load) -> None:
        replica.signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(bench.lengths.freeze)
        finally:
            replica.signal(signal.SIGCONT)

    # Nobody but the client can notice that a gateway is frozen: its own time-out ends what is on its way there.
    allowed = {"decoder": MIDWAY, "gateway": ("DEADLINE_EXCEEDED",)}.get(tier, ())
    return await bench.under_load(f"freeze-{tier}", deployment, fault, allowed=allowed, cut=tier == "gateway")


async def rolling(bench: Bench) -> Row:
    """All replicas of all tiers are restarted one by one, as a deployment rolls: no request may be lost or refused."""
    deployment = await bench.shared(gateways=2)
    codes: list[str] = []

    async def fault(load: Load) -> None:
        for replica in deployment.replicas:
            code = await replica.stop()
            if code:
                codes.append(f"{replica.name} ended with {code} after SIGTERM")
            replica.start()
            await replica.serving()

    row = await bench.under_load("rolling", deployment, fault)
    row.problems += codes
    return row
