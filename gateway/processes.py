"""Several processes of the gateway on one pair of ports: starts them, restarts those that die, and stops them.

One process of Python uses one core. Here the kernel distributes connections over processes that are otherwise
independent: each has its own channels to the tiers. This parent serves nothing but the metrics of all.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import tempfile
from collections.abc import Mapping

import structlog
from prometheus_client.multiprocess import mark_process_dead

from gateway.settings import GatewaySettings
from serving import logs, metrics, server
from serving.children import end, keep_running
from serving.parent import end_with_parent
from serving.server import Service, StartError, server_tls
from serving.signals import ending_signals
from serving.tasks import cancel_and_wait, gather_or_cancel, run_until
from serving.transport import Credentials, PortError, hold_port, open_metrics_port

log = structlog.get_logger()

_EXIT_SECONDS = 5.0
"""For a process to exit after its grace period."""


class _Worker:
    """One process that serves.

    Args:
        settings: Its settings as JSON.
        environment: Its environment.
        metrics_directory: Where it writes its metrics, if it does.
    """

    def __init__(self, settings: str, environment: Mapping[str, str], metrics_directory: str | None) -> None:
        self._settings = settings
        self._environment = environment
        self._metrics_directory = metrics_directory
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it, and wait until it serves.

        Raises:
            StartError: It ended before. It has printed the cause.
        """
        self._process = process = await asyncio.create_subprocess_exec(
            sys.executable,
            *(["-P"] if sys.flags.safe_path else []),
            "-m",
            "gateway.worker",
            *("--parent-pid", str(os.getpid())),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=self._environment,
            start_new_session=True,  # Ctrl-C goes to this parent alone, which then stops them
        )
        assert process.stdin is not None  # noqa: S101  # narrows the types
        assert process.stdout is not None  # noqa: S101
        with contextlib.suppress(ConnectionError):  # it has ended already
            process.stdin.write(self._settings.encode())
            process.stdin.close()
            await process.stdin.wait_closed()
        if not await process.stdout.readline():
            raise StartError(f"a process of the gateway ended with exit code {await self._ended()} while starting")

    async def keep(self) -> None:
        """Start it again whenever it dies, ever more slowly while it keeps dying."""
        await keep_running(self._died, self._restart)

    async def _died(self, backoff: float) -> None:
        assert self._process is not None  # noqa: S101  # `start` came first
        log.error("process ended", pid=self._process.pid, exit_code=await self._ended(), restart_seconds=backoff)

    async def _restart(self) -> bool:
        try:
            await self.start()
        except StartError:
            return False
        return True

    async def _ended(self) -> int:
        """Wait for its end; its gauges are not counted after it. Returns the exit code."""
        assert self._process is not None  # noqa: S101
        code = await self._process.wait()
        if self._metrics_directory is not None:
            mark_process_dead(self._process.pid, self._metrics_directory)  # type: ignore[no-untyped-call]
        return code

    async def stop(self, seconds: float) -> None:
        """Let it drain, and kill it if it takes longer than `seconds`."""
        await end(self._process, seconds)


def run(service: Service, settings: GatewaySettings) -> int:
    """Run the gateway as `settings.processes` processes until a signal.

    Args:
        service: The gateway, for one process: it is this one.
        settings: Its settings.

    Returns:
        The exit code, as of `serving.server.run`.
    """
    if settings.processes == 1:
        return server.run(service, settings)
    logs.configure(settings, service.name)
    if settings.parent_pid is not None:
        end_with_parent(settings.parent_pid)
    try:
        asyncio.run(_supervise(settings))
    except (StartError, PortError) as error:
        print(f"{service.name}: {error}", file=sys.stderr)  # noqa: T201  # for people who start it by hand
        return 1
    return 0


async def _supervise(settings: GatewaySettings) -> None:
    stopping = asyncio.Event()
    for number in ending_signals():
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    with contextlib.ExitStack() as stack:
        ports = {}
        for name, port in (("port", settings.port), ("http_port", settings.http_port)):
            if port is not None:
                held = stack.enter_context(hold_port(settings.host, port))
                ports[name] = held.getsockname()[1]
        environment = dict(os.environ)
        directory = None
        if settings.metrics_port is not None or settings.http_metrics:
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="triptych-metrics-"))
            environment[metrics.DIRECTORY] = directory
        if settings.metrics_port is not None and directory is not None:
            registry = metrics.of_processes(directory)
            credentials = Credentials(server=server_tls(settings))
            open_metrics_port(settings.host, settings.metrics_port, credentials=credentials, registry=registry)
        own = settings.model_copy(
            update={
                **ports,
                "metrics_port": None,
                "parent_pid": os.getpid(),
                "max_concurrent_rpcs": -(-settings.max_concurrent_rpcs // settings.processes),
            }
        )
        workers = [_Worker(own.model_dump_json(), environment, directory) for _ in range(settings.processes)]
        try:
            if not await run_until(gather_or_cancel(worker.start() for worker in workers), stopping.wait()):
                return
            log.info("processes serve", processes=settings.processes)
            keeping = asyncio.create_task(gather_or_cancel(worker.keep() for worker in workers))
            try:
                await stopping.wait()
            finally:
                await cancel_and_wait(keeping)
        finally:
            await asyncio.gather(*(worker.stop(settings.grace_seconds + _EXIT_SECONDS) for worker in workers))
