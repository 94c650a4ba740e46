"""Metrics of every call, for Prometheus."""

from __future__ import annotations

import os

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.multiprocess import MultiProcessCollector

DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"
"""Environment variable of prometheus-client: the directory to which several processes of a server write."""

CALLS = Counter("triptych_rpc_total", "Calls that ended.", ["method", "code"])
RUNNING = Gauge("triptych_rpc_running", "Calls that are running.", ["method"], multiprocess_mode="livesum")
SECONDS = Histogram(
    "triptych_rpc_seconds",
    "How long calls took.",
    ["method"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300),
)
CERTIFICATE_EXPIRES = Gauge(
    "triptych_tls_certificate_expires",
    "When the certificate in use expires, in seconds since 1970.",
    ["setting"],
    multiprocess_mode="min",
)


def served() -> CollectorRegistry:
    """The metrics of this server: of all its processes, if there are several."""
    directory = os.environ.get(DIRECTORY)
    return REGISTRY if directory is None else of_processes(directory)


def of_processes(directory: str) -> CollectorRegistry:
    """The sums of what several processes have written to a directory."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry, directory)  # type: ignore[no-untyped-call]
    return registry
