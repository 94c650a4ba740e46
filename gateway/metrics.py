"""The gateway's own metrics, for Prometheus."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

from gateway.ports import ReplicaCount

# Each process of a gateway sees all replicas, so their numbers are not added up.
_REPLICAS = Gauge("triptych_replicas", "Replicas of a tier.", ["tier", "state"], multiprocess_mode="livemostrecent")
RETRIES = Counter(
    "triptych_retries_total",
    "Failed attempts at a tier: moved to another replica at once, repeated after a pause, or given up because the "
    "attempts or the retry budget were used up.",
    ["tier", "outcome"],
)


def count_replicas(tier: str, count: ReplicaCount) -> None:
    """Set the numbers of a tier's replicas: those that get calls, those that are ejected, and the others."""
    states = {
        "available": count.available - count.ejected,
        "ejected": count.ejected,
        "unavailable": count.known - count.available,
    }
    for state, number in states.items():
        _REPLICAS.labels(tier, state).set(number)
