"""Opens every channel and every port: their options, their credentials and their interceptors are chosen here alone."""

from __future__ import annotations

import ipaddress
import socket
import ssl
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from wsgiref.simple_server import WSGIServer

import grpc
from prometheus_client import REGISTRY, CollectorRegistry, start_http_server

from serving.connections import ConnectionLimits
from serving.renewed_channel import RenewedChannel
from serving.settings import MIB
from serving.tls import ClientTls, ServerTls
from serving.wakeups import all_read_at_once

Options = Sequence[tuple[str, int | str]]
"""Channel arguments of gRPC."""

_EXTRA_STREAMS = 64

_METRICS_CONNECTIONS = 16
_METRICS_SECONDS = 10.0
"""Of the port of the metrics: most connections at once, and how long one may send nothing."""

HEALTH_OPTIONS: Options = [
    ("grpc.max_reconnect_backoff_ms", 250),
    # Do not use a proxy for outgoing connections.
    ("grpc.enable_http_proxy", 0),
]
"""For channels on which one server's health is read."""


@dataclass(frozen=True)
class Credentials:
    """Credentials of connections. None means plain text.

    Attributes:
        channel: Of a gRPC client.
        server: Of the ports of a server: gRPC, HTTP and metrics.
    """

    channel: ClientTls | None = None
    server: ServerTls | None = None


INSECURE = Credentials()
"""Plain text, without authentication."""


class PortError(Exception):
    """A port cannot be opened; the message is one sentence that names the address."""

    def __init__(self, host: str, port: int, purpose: str = "", cause: str | None = None) -> None:
        detail = f"{purpose and f' for {purpose}'}{f' ({cause})' if cause else ''}"
        super().__init__(f"cannot listen on {host}:{port}{detail}; is the port taken by another process?")


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def service_options(max_message_bytes: int = 128 * MIB, *, authority: str = "") -> Options:
    """Options of a channel to one replica of a service, with limits and keepalive.

    Args:
        max_message_bytes: Largest message in either direction.
        authority: Name for which the replica has its certificate; empty: the host of its address.
    """
    return [
        *([("grpc.ssl_target_name_override", authority)] if authority else ()),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        # Ends connections on which nothing arrives. In grpcio 1.85.1 `grpc.keepalive_timeout_ms` has no effect.
        ("grpc.keepalive_time_ms", 10_000),
        ("grpc.http2.ping_timeout_ms", 10_000),
        ("grpc.initial_reconnect_backoff_ms", 100),
        # Also the time limit of one attempt to connect, 20 seconds otherwise.
        ("grpc.min_reconnect_backoff_ms", 5_000),
        # Shorter than the total backoff of a caller's attempts: a replica that has just started, while another stops,
        # is found before the attempts are used up.
        ("grpc.max_reconnect_backoff_ms", 250),
        # Do not use a proxy for outgoing connections between the services.
        ("grpc.enable_http_proxy", 0),
        # Two channels to one target must not share connections, so that tests are independent.
        ("grpc.use_local_subchannel_pool", 1),
    ]


def client_options(address: str) -> Options:
    """Options of a client's channel to a gateway.

    Args:
        address: `host:port` of the gateway.
    """
    return [
        ("grpc.max_receive_message_length", 128 * MIB),
        ("grpc.max_send_message_length", -1),  # the gateway's setting decides
        # A gateway that restarts is found within a second.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1_000),
        # A gateway that does not answer at all is left after 25 seconds; the deadline of a call may be far longer.
        ("grpc.keepalive_time_ms", 15_000),
        ("grpc.http2.ping_timeout_ms", 10_000),
        # Do not use a proxy for outgoing connections.
        ("grpc.enable_http_proxy", int(not is_loopback(address.rpartition(":")[0]))),
    ]


def server_options(
    *,
    max_message_bytes: int,
    max_connection_age_seconds: float = 0.0,
    max_calls: int = 1024,
    limits: ConnectionLimits | None = None,
    shared: bool = False,
) -> Options:
    """Options of a server.

    Args:
        max_message_bytes: Largest message in either direction.
        max_connection_age_seconds: Age at which connections are renewed; 0: never.
        max_calls: Most calls at once that the server takes from all clients.
        limits: Limits of connections. None takes the defaults.
        shared: Whether other servers listen on the port, too; they share its connections. See `hold_port`.
    """
    limits = limits or ConnectionLimits()
    options = [
        ("grpc.max_allowed_incoming_connections", limits.most),
        ("grpc.server_handshake_timeout_ms", round(limits.handshake_seconds * 1000)),
        ("grpc.max_connection_idle_ms", round(limits.idle_seconds * 1000)),
        # A client that keeps to it may have all calls on one connection, and streams of health besides.
        ("grpc.max_concurrent_streams", max_calls + _EXTRA_STREAMS),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        # By default two servers on one port would share its connections at random; the second must fail instead.
        ("grpc.so_reuseport", int(shared)),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_permit_without_calls", 1),
        # A stream may have no messages while a picture is encoded: clients may send a keepalive ping every 5 seconds.
        # The bound is lower, since pings do not arrive as evenly as they are sent.
        ("grpc.http2.min_ping_interval_without_data_ms", 4_000),
    ]
    if max_connection_age_seconds:
        options += [
            ("grpc.max_connection_age_ms", round(max_connection_age_seconds * 1000)),
            # The age of a connection must not end a running generation.
            ("grpc.max_connection_age_grace_ms", 3_600_000),
        ]
    return options


def open_channel(
    target: str,
    options: Options | None = None,
    *,
    credentials: Credentials = INSECURE,
    server_name: str | None = None,
    interceptors: Sequence[grpc.aio.ClientInterceptor] = (),
) -> grpc.aio.Channel:
    """Open a channel on the running event loop.

    Args:
        target: A gRPC name: `host:port`, or `dns:///name:port`.
        options: None takes `service_options()`.
        credentials: `credentials.channel` is used. When its files change, new calls use a new connection.
        server_name: Name that the server's certificate must have; None: the host of the target.
        interceptors: Around each call, the first outermost.
    """
    options = service_options() if options is None else options
    with all_read_at_once():
        if credentials.channel is None:
            return grpc.aio.insecure_channel(target, options, interceptors=interceptors)
        options = _expecting(server_name, options)
        return RenewedChannel(
            credentials.channel,
            lambda current: grpc.aio.secure_channel(target, current, options, interceptors=interceptors),
        )


def open_blocking_channel(
    target: str,
    options: Options,
    *,
    credentials: Credentials = INSECURE,
    server_name: str | None = None,
    interceptors: Sequence[Any] = (),
) -> grpc.Channel:
    """Open a channel for blocking calls from any thread.

    Arguments as for `open_channel`, but the credentials are read once.
    """
    if credentials.channel is None:
        channel = grpc.insecure_channel(target, options)
    else:
        channel = grpc.secure_channel(target, credentials.channel.current(), _expecting(server_name, options))
    return grpc.intercept_channel(channel, *interceptors)


def _expecting(server_name: str | None, options: Options) -> Options:
    return options if server_name is None else [*options, ("grpc.ssl_target_name_override", server_name)]


def open_port(server: grpc.aio.Server, host: str, port: int, *, credentials: Credentials = INSECURE) -> int:
    """Add a port to a gRPC server that has not started.

    Args:
        server: The server.
        host: Address to listen on.
        port: Port, or 0 for a free one.
        credentials: `credentials.server` is used.

    Returns:
        The port.

    Raises:
        PortError: The port cannot be opened.
    """
    address = f"{host}:{port}"
    try:
        if credentials.server is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, credentials.server.grpc())
    except RuntimeError as error:
        raise PortError(host, port) from error


def open_http_port(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """Open a TCP port for an HTTP server, which adds TLS with `Credentials.server` itself.

    Args:
        host: Address to listen on; an IPv6 address may be in brackets.
        port: Port, or 0 for a free one.
        shared: As for `server_options`.

    Returns:
        A listening socket.

    Raises:
        PortError: The port cannot be opened.
    """
    family, address = _family(host)
    try:
        return socket.create_server((address, port), family=family, reuse_port=shared)
    except OSError as error:
        raise PortError(host, port, "HTTP", error.strerror) from error


def _family(host: str) -> tuple[socket.AddressFamily, str]:
    address = host.strip("[]")
    return socket.AF_INET6 if ":" in address else socket.AF_INET, address


def hold_port(host: str, port: int) -> socket.socket:
    """Hold a port for several servers that are opened with `shared`, so that no other program can take it.

    Args:
        host: Address to listen on; an IPv6 address may be in brackets.
        port: Port, or 0 for a free one.

    Returns:
        A socket that is bound and does not listen. The port is held until it is closed.

    Raises:
        PortError: The port is taken.
    """
    family, address = _family(host)
    held = socket.socket(family, socket.SOCK_STREAM)
    try:
        # A port of connections that have ended may be taken.
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind((address, port))
        # From here on it can be shared by sockets that are opened for that, and by no others.
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    except OSError as error:
        held.close()
        raise PortError(host, port, cause=error.strerror) from error
    return held


def open_metrics_port(
    host: str, port: int, *, credentials: Credentials = INSECURE, registry: CollectorRegistry = REGISTRY
) -> int:
    """Serve the page of Prometheus metrics on a thread, until the process ends.

    Args:
        host: Address to listen on.
        port: Port, or 0 for a free one.
        credentials: `credentials.server` is used.
        registry: The metrics.

    Returns:
        The port.

    Raises:
        PortError: The port cannot be opened.
    """
    tls = credentials.server
    try:
        server, _ = start_http_server(port, host, registry, **({} if tls is None else tls.files()))
    except OSError as error:
        raise PortError(host, port, "metrics", error.strerror) from error
    # A handshake that fails, or a client that leaves, would be a traceback on stderr.
    server.handle_error = lambda request, client_address: None  # type: ignore[method-assign]
    if tls is not None:
        assert isinstance(server.socket, ssl.SSLSocket)  # noqa: S101  # narrows the type
        tls.follow(server.socket.context)
        # On the thread of the connection: a client that sends nothing must not stop others from connecting.
        server.socket.do_handshake_on_connect = False  # type: ignore[attr-defined]  # not in the stub
    _limit_clients(server)
    return int(server.server_port)


def _limit_clients(server: WSGIServer) -> None:
    """Limit the connections of a server that has a thread for each, and the time for which they may send nothing."""
    places = threading.BoundedSemaphore(_METRICS_CONNECTIONS)
    handler: Any = server.RequestHandlerClass

    class Limited(handler):  # type: ignore[misc]
        timeout = _METRICS_SECONDS

        def finish(self) -> None:
            try:
                super().finish()
            finally:
                places.release()

    server.RequestHandlerClass = Limited
    # socketserver's hook: a connection for which it is false is closed.
    server.verify_request = lambda request, client_address: places.acquire(blocking=False)  # type: ignore[method-assign]


class ReservedPorts:
    """TCP ports for servers that are started later.

    A port is held until `release`, so that none is assigned twice.

    Args:
        host: Address of the ports.
    """

    def __init__(self, host: str) -> None:
        self._host = host
        self._held: list[socket.socket] = []

    def reserve(self, port: int = 0) -> int:
        """Reserve a port, or a free one for 0.

        Raises:
            PortError: The port is taken.
        """
        try:
            held = socket.create_server((self._host, port))
        except OSError as error:
            raise PortError(self._host, port, cause=error.strerror) from error
        self._held.append(held)
        return int(held.getsockname()[1])

    def release(self) -> None:
        """Release all ports, so that the servers can open them."""
        for held in self._held:
            held.close()
        self._held.clear()
