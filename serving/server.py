"""Life cycle of a server: load, warm up, listen, SERVING; on a signal NOT_SERVING, drain, stop."""

from __future__ import annotations

import asyncio
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import grpc
import structlog
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from serving import logs
from serving.connections import raise_descriptor_limit
from serving.errors import ServiceError
from serving.health import Health
from serving.interceptors import CallInterceptor
from serving.parent import end_with_parent
from serving.settings import ServerSettings
from serving.signals import ending_signals
from serving.tasks import run_until
from serving.tls import KeyPair, PemFile, ServerTls, TlsError
from serving.transport import Credentials, PortError, is_loopback, open_metrics_port, open_port, server_options
from serving.wakeups import all_read_at_once

log = structlog.get_logger()


class StartError(Exception):
    """A server cannot start. The message is one sentence with cause and remedy."""


class Service(ABC):
    """The interface between the three services and the server that runs them."""

    name: str
    """Name in logs."""

    grpc_names: Sequence[str]
    """Full names of its gRPC services, for health and reflection."""

    internal = False
    """Whether only the gateway calls it, so that a port that is open to others deserves a warning."""
    shares_port = False
    """Whether other processes of the same service listen on its port, too."""
    tls: ServerTls | None = None
    """The certificate of its ports; None: plain text. `serve` sets it before `start`."""

    @abstractmethod
    async def start(self, set_serving: Callable[[bool], None]) -> None:
        """Load and warm up. Returns when requests would succeed. When cancelled it releases what it has acquired.

        Args:
            set_serving: Turns health to SERVING (True) or NOT_SERVING (False) later on, from the event loop.

        Raises:
            StartError: It cannot start.
        """

    @abstractmethod
    def register(self, server: grpc.aio.Server) -> None:
        """Add the servicers."""

    def interceptors(self) -> Sequence[grpc.aio.ServerInterceptor]:
        """Interceptors of its own, within `CallInterceptor`. Called after `start`."""
        return ()

    async def drain(self) -> None:  # noqa: B027  # a service may have nothing to do
        """Close the service's own ports. Called when the server starts to drain; returns after their last request."""

    @abstractmethod
    async def stop(self) -> None:
        """Release what `start` acquired. Called after the last call has ended."""


async def serve(
    service: Service,
    settings: ServerSettings,
    *,
    on_listening: Callable[[int], None] | None = None,
    stop: asyncio.Event | None = None,
) -> None:
    """Run a service until SIGINT, SIGTERM or SIGHUP.

    Args:
        service: The service.
        settings: Its settings.
        on_listening: Called with the port once it is open and healthy.
        stop: Ends the server as a signal does, for programs that run it in their own event loop.

    Raises:
        StartError: The service cannot start, or the port is taken.
    """
    stopping = stop
    if stopping is None:
        stopping = asyncio.Event()
        for number in ending_signals():
            asyncio.get_running_loop().add_signal_handler(number, stopping.set)

    service.tls = server_tls(settings)
    credentials = Credentials(server=service.tls)
    _warn_of_open_ports(service, settings)
    health_state = Health(service.grpc_names)
    # A start may take long, or wait for other services.
    if not await run_until(service.start(health_state.set), stopping.wait()):
        return
    try:
        if settings.parent_pid is not None:
            end_with_parent(settings.parent_pid)
        with all_read_at_once():
            server = grpc.aio.server(
                interceptors=[
                    CallInterceptor(
                        max_calls=settings.max_concurrent_rpcs,
                        max_message_bytes=settings.max_message_bytes,
                        limits=settings.connection_limits,
                        client_names=settings.client_names,
                    ),
                    *service.interceptors(),
                ],
                options=server_options(
                    max_message_bytes=settings.max_message_bytes,
                    max_connection_age_seconds=settings.max_connection_age_seconds,
                    max_calls=settings.max_concurrent_rpcs,
                    limits=settings.connection_limits,
                    shared=service.shares_port,
                ),
            )
        service.register(server)
        health_pb2_grpc.add_HealthServicer_to_server(health_state, server)
        if settings.reflection:
            names = (*service.grpc_names, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, server)
        try:
            port = open_port(server, settings.host, settings.port, credentials=credentials)
            if settings.metrics_port is not None:
                open_metrics_port(settings.host, settings.metrics_port, credentials=credentials)
        except PortError as error:
            raise StartError(str(error)) from error
        await server.start()
        health_state.set(serving=True)
        log.info("serving", address=f"{settings.host}:{port}")
        if on_listening is not None:
            on_listening(port)
        await stopping.wait()
        log.info("draining", grace_seconds=settings.grace_seconds)
        health_state.stop()
        await asyncio.gather(server.stop(settings.grace_seconds), service.drain())
    finally:
        await service.stop()
    log.info("stopped")


def server_tls(settings: ServerSettings) -> ServerTls | None:
    """The certificate of the ports of a server; None: plain text.

    Raises:
        StartError: A file cannot be used.
    """
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    pair = KeyPair(PemFile("tls_cert", settings.tls_cert), PemFile("tls_key", settings.tls_key))
    ca = settings.tls_client_ca
    try:
        return ServerTls(pair, None if ca is None else PemFile("tls_client_ca", ca))
    except TlsError as error:
        raise StartError(str(error)) from error


def _warn_of_open_ports(service: Service, settings: ServerSettings) -> None:
    if is_loopback(settings.host):
        return
    if settings.tls_cert is None:
        log.warning("the ports are plain text and open to other hosts; set tls_cert and tls_key", host=settings.host)
    if service.internal and settings.tls_client_ca is None:
        log.warning("every host that reaches the port may call it; set tls_client_ca", host=settings.host)


def run(service: Service, settings: ServerSettings, *, on_listening: Callable[[int], None] | None = None) -> int:
    """Run a service as this process; if it cannot start, print the cause in one line.

    Args:
        service: The service.
        settings: Its settings.
        on_listening: As for `serve`.

    Returns:
        The exit code: 0 after a clean stop, 1 if it could not start.
    """
    logs.configure(settings, service.name)
    raise_descriptor_limit()
    try:
        asyncio.run(serve(service, settings, on_listening=on_listening))
    except (StartError, ServiceError) as error:
        print(f"{service.name}: {error}", file=sys.stderr)  # noqa: T201  # for people who start it by hand
        return 1
    return 0
