"""Half an hour of steady load: memory and descriptors of each process stay flat."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Sequence

from tests.faults.asking import Load
from tests.faults.bench import Bench, Row
from tests.faults.services import Usage

MIB = 1 << 20
_EVERY = 10.0
_WARM = 0.2
"""Share of the time in which caches and pools fill; it is not compared."""
_MOST_GROWTH = 0.05
_MOST_MIB = 8.0
_MOST_DESCRIPTORS = 8


async def soak(bench: Bench) -> Row:
    """Steady load of 8 clients; each process is measured every ten seconds."""
    deployment = await bench.shared(gateways=2)
    samples: dict[str, list[tuple[float, Usage]]] = {replica.name: [] for replica in deployment.replicas}

    async def fault(load: Load) -> None:
        began = time.monotonic()
        while (now := time.monotonic()) - began < bench.lengths.soak * 60:
            for replica in deployment.replicas:
                samples[replica.name].append((now - began, replica.usage()))
            await asyncio.sleep(min(_EVERY, bench.lengths.soak * 6))

    row = await bench.under_load("soak", deployment, fault, clients=8)
    row.recovery, row.since = None, ""
    for name, taken in samples.items():
        row.figures[name] = _summary(name, taken, row.problems)
    return row


def _summary(name: str, taken: Sequence[tuple[float, Usage]], problems: list[str]) -> str:
    """Medians of the first and of the last quarter, without the warm-up, and the slope between."""
    kept = taken[round(len(taken) * _WARM) :]
    quarter = max(1, len(kept) // 4)
    first, last = ([usage for _, usage in part] for part in (kept[:quarter], kept[-quarter:]))
    rss = [statistics.median(usage.rss / MIB for usage in part) for part in (first, last)]
    open_files = [statistics.median(usage.descriptors for usage in part) for part in (first, last)]
    slope = 0.0
    if len(kept) > 1:
        slope = statistics.linear_regression([s / 3600 for s, _ in kept], [usage.rss / MIB for _, usage in kept]).slope
    if rss[1] - rss[0] > max(_MOST_MIB, _MOST_GROWTH * rss[0]):
        problems.append(f"{name} grew from {rss[0]:.0f} to {rss[1]:.0f} MiB")
    if open_files[1] - open_files[0] > _MOST_DESCRIPTORS:
        problems.append(f"{name} had {open_files[0]:g} descriptors and then {open_files[1]:g}")
    return f"{rss[0]:.0f} → {rss[1]:.0f} MiB ({slope:+.0f} MiB/h), {open_files[0]:g} → {open_files[1]:g} descriptors"
