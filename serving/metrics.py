"""Metrics of every call, for Prometheus."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

CALLS = Counter("triptych_rpc_total", "Calls that ended.", ["method", "code"])
RUNNING = Gauge("triptych_rpc_running", "Calls that are running.", ["method"])
SECONDS = Histogram(
    "triptych_rpc_seconds",
    "How long calls took.",
    ["method"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300),
)
CERTIFICATE_EXPIRES = Gauge(
    "triptych_tls_certificate_expires", "When the certificate in use expires, in seconds since 1970.", ["setting"]
)
