"""The services as processes that can be killed, frozen, limited and measured."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import psutil
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serving.transport import HEALTH_OPTIONS, INSECURE, ReservedPorts, open_channel
from tests.faults.asking import Gateways
from tests.faults.doors import tls_context
from tests.faults.network import Hosts
from tests.faults.security import Security

ROOT = Path(__file__).parents[2]
START_SECONDS = 180.0
"""Far more than a start takes on a machine that is busy with something else."""


class NotServingError(Exception):
    """A service is not SERVING in time, or has ended."""


@dataclass(frozen=True)
class Usage:
    """What a process holds: resident bytes, and open descriptors."""

    rss: int
    descriptors: int


class Replica:
    """One service process. It stays dead when it dies.

    Args:
        module: Python module to run.
        number: Which of its tier.
        port: Its gRPC port.
        flags: Its other flags.
        logs: Folder of its log.
        host: Address to listen on.
        prefix: Words before the command, as of `ip netns exec` or `prlimit`.
        http_port: Of a gateway.
        environment: More variables.
        log: File of its log, if not in `logs`.
        security: TLS of its ports; None: plain text.
    """

    def __init__(
        self,
        module: str,
        number: int,
        port: int,
        flags: Sequence[str],
        logs: Path,
        *,
        host: str = "127.0.0.1",
        prefix: Sequence[str] = (),
        http_port: int | None = None,
        environment: Mapping[str, str] | None = None,
        log: Path | None = None,
        security: Security | None = None,
    ) -> None:
        self.name = f"{module.removesuffix('_service')} {number}"
        self.address = f"{host}:{port}"
        self.http_port = http_port
        self.http = f"{'https' if security else 'http'}://{host}:{http_port}"
        self._credentials = security.health if security else INSECURE
        self.log = log or logs / f"{module}-{number}.log"
        self._environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'protos'}", **(environment or {})}
        own = [] if http_port is None else ["--http-port", str(http_port)]
        command = [sys.executable, "-P", "-m", module, "--host", host, "--port", str(port), *own]
        # The clients come first: on busy cores a slow event loop of theirs would look like a service that hangs.
        self._command = ["nice", "-n", "3", *prefix, *command, "--parent-pid", str(os.getpid()), *flags]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Of the process that was started last."""
        assert self._process is not None
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        assert self._process is not None
        return self._process.poll()

    def start(self) -> None:
        """Start the process; its log is continued."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._environment,
                start_new_session=True, cwd=ROOT,
            )  # fmt: skip

    async def serving(self, seconds: float = START_SECONDS) -> None:
        """Wait until it is SERVING.

        Raises:
            NotServingError: It has ended, or is not in time.
        """
        until = time.monotonic() + seconds
        while not await self.healthy():
            if self.exit_code is not None:
                raise NotServingError(f"{self.name} ended with {self.exit_code}: {self.last_words()}")
            if time.monotonic() > until:
                raise NotServingError(f"{self.name} is not SERVING after {seconds:g} s: {self.last_words()}")
            await asyncio.sleep(0.1)

    async def healthy(self, seconds: float = 3.0) -> bool:
        """Whether it says that it is SERVING."""
        try:
            async with open_channel(self.address, HEALTH_OPTIONS, credentials=self._credentials) as channel:
                stub: Any = health_pb2_grpc.HealthStub(channel)
                reply = await stub.Check(health_pb2.HealthCheckRequest(), timeout=seconds)
        except grpc.RpcError:
            return False
        return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)

    def last_words(self) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-600:].strip()

    def kill(self) -> None:
        """Kill -9."""
        self.signal(signal.SIGKILL)
        assert self._process is not None
        self._process.wait(30)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, as SIGSTOP or SIGCONT, to the process and its children."""
        for each in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                each.send_signal(number)

    def processes(self) -> list[psutil.Process]:
        """The process and its children: a gateway may have several."""
        process = psutil.Process(self.pid)
        return [process, *process.children(recursive=True)]

    async def stop(self, seconds: float = 60.0) -> int:
        """SIGTERM, and kill -9 after a time. Returns the exit code."""
        assert self._process is not None
        if self._process.poll() is None:
            self.signal(signal.SIGCONT)
            self._process.terminate()
            until = time.monotonic() + seconds
            while self._process.poll() is None and time.monotonic() < until:  # noqa: ASYNC110  # a process, no event
                await asyncio.sleep(0.05)
        if self._process.poll() is None:
            self.kill()
        return self._process.wait(30)

    def usage(self) -> Usage:
        """What it holds, with its children."""
        rss = descriptors = 0
        for each in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                rss += each.memory_info().rss
                descriptors += each.num_fds()
        return Usage(rss, descriptors)


@dataclass(frozen=True)
class Plan:
    """What to start.

    Attributes:
        bundle: The model.
        vision: Number of vision services.
        decoders: Number of decoder services.
        gateways: Number of gateways.
        flags: More flags by module.
        environment: More environment variables by module.
        prefix: Words before the command by module.
        log: The log file by module, where it is not in the scratch folder.
        security: TLS and keys; None: plain text without keys.
        processes: Of each gateway.
    """

    bundle: Path
    vision: int = 2
    decoders: int = 2
    gateways: int = 1
    flags: Mapping[str, Sequence[str]] = field(default_factory=dict)
    environment: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    prefix: Mapping[str, Sequence[str]] = field(default_factory=dict)
    log: Mapping[str, Path] = field(default_factory=dict)
    security: Security | None = None
    processes: int = 1


FLAGS: Mapping[str, Sequence[str]] = {
    "vision_service": ("--dtype", "float32", "--threads", "1"),
    "decoder_service": ("--threads", "1"),
    "gateway": ("--log-level", "info", "--log-format", "json"),
}

# What the gateway logs where it sends a request to a replica after another has failed it.
_MOVES = ("attempt failed",)


class Deployment:
    """All replicas of the three tiers.

    Args:
        plan: What to start.
        logs: Folder of the logs.
        hosts: By module: for each replica its address and the words before its command.
    """

    def __init__(self, plan: Plan, logs: Path, hosts: Hosts | None = None) -> None:
        ports = ReservedPorts("127.0.0.1")

        def tier(module: str, count: int, more: Sequence[str], *, http: bool = False) -> list[Replica]:
            safety = plan.security.flags(module) if plan.security else ()
            flags = [*FLAGS[module], *more, *safety, *plan.flags.get(module, ())]
            placed = (hosts or {}).get(module, [("127.0.0.1", ())] * count)
            return [
                Replica(
                    module, number, ports.reserve(), flags, logs, host=host,
                    prefix=[*prefix, *plan.prefix.get(module, ())],
                    http_port=ports.reserve() if http else None,
                    environment=plan.environment.get(module),
                    log=plan.log.get(module),
                    security=plan.security,
                )
                for number, (host, prefix) in enumerate(placed[:count])
            ]  # fmt: skip

        model = ["--bundle", str(plan.bundle), "--log-level", "warning"]
        self.vision = tier("vision_service", plan.vision, model)
        self.decoders = tier("decoder_service", plan.decoders, model)
        targets = ["--vision", _target(self.vision), "--decoder", _target(self.decoders)]
        targets += ["--processes", str(plan.processes)]
        self.gateways_list = tier("gateway", plan.gateways, targets, http=True)
        ports.release()
        self.gateways = Gateways(
            [replica.address for replica in self.gateways_list],
            [replica.http for replica in self.gateways_list],
            keys=plan.security.keys if plan.security else (),
            ca=plan.security.ca if plan.security else None,
        )

    @property
    def replicas(self) -> list[Replica]:
        """All of them."""
        return [*self.vision, *self.decoders, *self.gateways_list]

    async def start(self) -> None:
        """Start everything and wait until it is SERVING."""
        for replica in self.replicas:
            replica.start()
        for replica in self.replicas:
            await replica.serving()

    async def stop(self) -> None:
        """Stop the gateways first."""
        for tier in (self.gateways_list, [*self.vision, *self.decoders]):
            await asyncio.gather(*(replica.stop(20) for replica in tier))

    async def mend(self) -> None:
        """Start what has ended."""
        for replica in self.replicas:
            if replica.exit_code is not None:
                replica.start()
        for replica in self.replicas:
            await replica.serving()

    def moved(self) -> Iterator[str]:
        """Ids of the requests that a gateway has sent to another replica after one had failed."""
        for gateway in self.gateways_list:
            with gateway.log.open(errors="replace") as log:
                for line in log:
                    if any(f'"{move}"' in line for move in _MOVES):
                        with contextlib.suppress(ValueError):
                            yield str(json.loads(line).get("request_id"))

    def tracebacks(self) -> dict[str, int]:
        """Number of tracebacks in the logs, by replica."""
        found = {
            r.name: r.log.read_text(errors="replace").count("Traceback (most recent call last)") for r in self.replicas
        }
        return {name: count for name, count in found.items() if count}


def _target(replicas: Sequence[Replica]) -> str:
    return "ipv4:" + (",".join(replica.address for replica in replicas) or "127.0.0.1:1")  # a gateway alone waits


def healthz(url: str, ca: Path | None = None, seconds: float = 5.0) -> int:
    """Status of a gateway's `/healthz`."""
    context = tls_context(ca) if ca else None
    with urllib.request.urlopen(f"{url}/healthz", timeout=seconds, context=context) as response:  # noqa: S310  # HTTP(S)
        return int(response.status)


@contextlib.asynccontextmanager
async def deployed(plan: Plan, logs: Path, hosts: Hosts | None = None) -> AsyncIterator[Deployment]:
    """A deployment that is SERVING; nothing of it is left afterwards."""
    deployment = Deployment(plan, logs, hosts)
    try:
        await deployment.start()
        yield deployment
    finally:
        await deployment.stop()
