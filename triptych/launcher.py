"""Runs the whole system as local processes: start in order, watch, restart, stop in order."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serving.bundle import Bundle, BundleError
from serving.children import end, keep_running
from serving.cores import usable_cores
from serving.priority import lower_priority
from serving.probe import credentials_of
from serving.signals import ending_signals
from serving.tasks import cancel_and_wait, gather_or_cancel, run_until
from serving.tls import TlsError
from serving.transport import HEALTH_OPTIONS, Credentials, PortError, ReservedPorts, open_channel

T = TypeVar("T")

_LOOPBACK = "127.0.0.1"
_PREFIXES = ("VISION_", "DECODER_", "GATEWAY_")
"""Of the settings of the services in the environment."""


class LaunchError(Exception):
    """The system cannot start. The message is one sentence, or empty if the service has printed the cause itself."""


@dataclass(frozen=True)
class Plan:
    """The processes to start.

    Attributes:
        bundle: The model.
        grpc_port: The gateway's gRPC port; 0 takes a free one.
        http_port: The gateway's HTTP port; 0 takes a free one.
        vision_replicas: Number of vision services; a model that takes text only gets none.
        decoder_replicas: Number of decoder services.
        grace_seconds: Seconds that running requests may take after a signal.
        log_level: Lowest level that the services log.
        environment: Environment variables of the vision and decoder services; they override this process's own.
        default_settings: Whether the services ignore the settings in this process's own environment.
    """

    bundle: Path
    grpc_port: int = 50051
    http_port: int = 8080
    vision_replicas: int = 1
    decoder_replicas: int = 1
    grace_seconds: float = 30.0
    log_level: str = "warning"
    environment: Mapping[str, str] = field(default_factory=dict)
    default_settings: bool = False


# With this, decode keeps more than half of its speed while pictures are encoded, and encoding nearly half of its own.
_VISION_NICE = 2


@dataclass(frozen=True)
class Addresses:
    """Where the system answers."""

    grpc: str
    http: str


class Replica:
    """One service process that is started again on its port when it dies.

    Args:
        module: Python module to run.
        flags: Its flags, beside the port.
        port: Its gRPC port.
        environment: Its environment; None: this process's own.
        nice: Niceness, 0 to 19: how far it gives way to the other services on busy cores.
    """

    def __init__(
        self, module: str, flags: list[str], port: int, environment: dict[str, str] | None = None, nice: int = 0
    ) -> None:
        self.name = f"{module}:{port}"
        self.address = f"{_LOOPBACK}:{port}"
        # -P: a file in the working directory must not take the place of a library's module.
        self._command = [
            sys.executable,
            "-P",
            "-m",
            module,
            "--port",
            str(port),
            "--parent-pid",
            str(os.getpid()),
            *flags,
        ]
        self.environment = environment
        self._prefix = f"{module.partition('_')[0].upper()}_"
        self.nice = nice
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """Process id; the process must have been started."""
        assert self._process is not None  # noqa: S101  # narrows the type
        return self._process.pid

    async def start(self) -> None:
        """Start the process."""
        # A session of its own: Ctrl-C goes to the launcher alone, which then stops the services in order.
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            env=self.environment,
            start_new_session=True,
        )
        if self.nice:
            lower_priority(self._process.pid, self.nice)

    async def ready(self) -> None:
        """Wait until it is SERVING.

        Raises:
            LaunchError: It ended before that, or its certificate cannot be used.
        """
        assert self._process is not None  # noqa: S101  # narrows the type: `start` came first
        try:
            credentials, name = credentials_of(self.environment or os.environ, self._prefix)
        except TlsError as error:
            raise LaunchError(f"{self.name}: {error}") from error
        ended = asyncio.create_task(self._process.wait())
        if not await run_until(_until_serving(self.address, credentials, name), ended):
            code = ended.result()
            # With 1 or 2 the service has printed why on stderr.
            raise LaunchError("" if code in (1, 2) else f"{self.name} ended with {_describe(code)} while starting")

    async def keep(self, on_death: Callable[[str], None]) -> None:
        """Start it again whenever it dies, ever more slowly while it keeps dying.

        Args:
            on_death: Called with one line about what happened.
        """

        async def ended(backoff: float) -> None:
            assert self._process is not None  # noqa: S101  # narrows the type: `start` came first
            code = await self._process.wait()
            on_death(f"{self.name} ended with {_describe(code)}; starting it again in {backoff:g} s")

        async def restart() -> bool:
            await self.start()
            try:
                await self.ready()
            except LaunchError:
                return False
            return True

        await keep_running(ended, restart)

    async def stop(self, grace_seconds: float) -> None:
        """Terminate the process, and kill it after the grace period."""
        await end(self._process, grace_seconds)


async def run(
    plan: Plan,
    on_ready: Callable[[Addresses], Awaitable[None] | None],
    *,
    on_event: Callable[[str], None] = lambda line: print(f"triptych: {line}", file=sys.stderr),  # noqa: T201
    until: asyncio.Event | None = None,
) -> None:
    """Run the system until SIGINT, SIGTERM, SIGHUP or `until`.

    Args:
        plan: The processes to start.
        on_ready: Called once when the system is ready. If it returns an awaitable, the system stops after it.
        on_event: Called with one line when a service exits.
        until: Stops the system as a signal does.

    Raises:
        LaunchError: The system cannot start. No process is left running.
    """
    stopping = until or asyncio.Event()
    loop = asyncio.get_running_loop()
    signals = ending_signals()
    for number in signals:
        loop.add_signal_handler(number, stopping.set)
    system = System(plan)
    try:
        if not await run_until(system.start(), stopping.wait()):
            return
        keepers = asyncio.create_task(system.keep(on_event))
        try:
            outcome = on_ready(system.addresses)
            if outcome is None:
                await stopping.wait()
            else:
                await run_until(outcome, stopping.wait())
        finally:
            await cancel_and_wait(keepers)
    finally:
        await system.stop()
        for number in signals:
            loop.remove_signal_handler(number)


async def run_while(plan: Plan, work: Callable[[Addresses], Awaitable[T]]) -> T:
    """Run the system for as long as some work takes.

    Args:
        plan: What to start.
        work: Begun once requests would succeed; cancelled by SIGINT and SIGTERM.

    Returns:
        What the work gives.

    Raises:
        LaunchError: The system cannot start, or a signal came. Nothing is left running.
    """
    done: list[T] = []

    async def keep(addresses: Addresses) -> None:
        done.append(await work(addresses))

    await run(plan, keep)
    if not done:
        raise LaunchError("interrupted")
    return done[0]


class System:
    """The replicas of all three tiers. A model that takes text only has no vision tier.

    Args:
        plan: The processes to start.

    Raises:
        LaunchError: A port is taken.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        ports = ReservedPorts(_LOOPBACK)
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not (plan.default_settings and name.upper().startswith(_PREFIXES))
        }
        shared = ["--log-level", plan.log_level, "--grace-seconds", f"{plan.grace_seconds:g}"]
        model = [*shared, "--bundle", str(plan.bundle)]

        def tier(module: str, threads: str, count: int, nice: int = 0) -> list[Replica]:
            # The replicas of a tier divide the cores. Each tier may use all of them, since it is often the only busy
            # one.
            environment = {threads: str(max(1, usable_cores() // max(count, 1))), **inherited, **plan.environment}
            return [Replica(module, model, ports.reserve(), environment, nice) for _ in range(count)]

        encoders = plan.vision_replicas if _takes_media(plan.bundle) else 0
        self.vision = tier("vision_service", "VISION_THREADS", encoders, _VISION_NICE)
        self.decoders = tier("decoder_service", "DECODER_THREADS", plan.decoder_replicas)
        grpc_port = _reserve(ports, plan.grpc_port, "--grpc-port")
        http_port = _reserve(ports, plan.http_port, "--http-port")
        ports.release()
        targets = ["--vision", _target(self.vision), "--decoder", _target(self.decoders)]
        self.gateway = Replica("gateway", [*shared, *targets, "--http-port", str(http_port)], grpc_port, inherited)
        scheme = "https" if inherited.get("GATEWAY_TLS_CERT") else "http"
        self.addresses = Addresses(f"{_LOOPBACK}:{grpc_port}", f"{scheme}://{_LOOPBACK}:{http_port}")

    async def start(self) -> None:
        """Start everything; returns when the system is ready for requests."""
        replicas = [*self.vision, *self.decoders, self.gateway]
        for replica in replicas:
            await replica.start()
        # One failure ends the start: the other services may wait for the failed one for ever.
        await gather_or_cancel(replica.ready() for replica in replicas)

    async def keep(self, on_event: Callable[[str], None]) -> None:
        """Restart services that exit."""
        await asyncio.gather(*(r.keep(on_event) for r in (*self.vision, *self.decoders, self.gateway)))

    async def stop(self) -> None:
        """Stop the gateway first, so that running requests can finish."""
        # The gateway's own grace period, and some time for the processes to exit.
        await self.gateway.stop(self._plan.grace_seconds + 5)
        await asyncio.gather(*(replica.stop(5) for replica in (*self.vision, *self.decoders)))


def _takes_media(bundle: Path) -> bool:
    try:
        return Bundle.open(bundle).has_encoder
    except BundleError:
        return True  # the services print what is wrong with it


def _reserve(ports: ReservedPorts, port: int, flag: str) -> int:
    """Reserve a port of a flag; 0 takes a free one.

    Raises:
        LaunchError: The port is taken.
    """
    try:
        return ports.reserve(port)
    except PortError:
        raise LaunchError(f"port {port} is taken; choose another with {flag}") from None


def _target(replicas: list[Replica]) -> str:
    return ",".join(replica.address for replica in replicas) or "off"


def _describe(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


async def _until_serving(address: str, credentials: Credentials, server_name: str | None) -> None:
    """Wait until the server at `address` is SERVING."""
    options = HEALTH_OPTIONS
    async with open_channel(address, options, credentials=credentials, server_name=server_name) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        while True:
            watch = stub.Watch(health_pb2.HealthCheckRequest(), wait_for_ready=True)  # type: ignore[attr-defined]
            try:
                async for reply in watch:
                    if reply.status == health_pb2.HealthCheckResponse.SERVING:
                        return
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.1)  # the connection was lost: the server may be restarting
            finally:
                watch.cancel()
