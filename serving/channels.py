"""Channels to the other services: balanced over replicas by health, with limits and keepalive."""

from __future__ import annotations

import json

import grpc

from serving.settings import MIB

_SERVICE = {
    # round_robin with health checking shifts traffic at once when a replica turns NOT_SERVING; pick_first ignores it.
    "loadBalancingConfig": [{"round_robin": {}}],
    # The empty name is the server as a whole.
    "healthCheckConfig": {"serviceName": ""},
}


def open_channel(target: str, *, max_message_bytes: int = 128 * MIB) -> grpc.aio.Channel:
    """Open a channel on the running event loop.

    Args:
        target: A gRPC name: `host:port`, `dns:///name:port` for every address behind a name, or a list of addresses
            such as `ipv4:127.0.0.1:50061,127.0.0.1:50062`.
        max_message_bytes: Largest message in either direction.
    """
    return grpc.aio.insecure_channel(
        target,
        options=[
            ("grpc.service_config", json.dumps(_SERVICE)),
            ("grpc.max_receive_message_length", max_message_bytes),
            ("grpc.max_send_message_length", max_message_bytes),
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.initial_reconnect_backoff_ms", 100),
            # Less than the waits between a caller's attempts together: a replica that has just come up, while another
            # goes down, is found before the attempts are used up.
            ("grpc.max_reconnect_backoff_ms", 250),
            # The services are neighbours: a proxy that is set for the way out is not between them.
            ("grpc.enable_http_proxy", 0),
            # Two channels to one target are two sets of connections: a test's must not be another's.
            ("grpc.use_local_subchannel_pool", 1),
        ],
    )
