"""A full disk, no file descriptors, no memory."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from tests.faults.asking import Asker, Gateways, Load
from tests.faults.bench import Bench, Row
from tests.faults.doors import HttpDoor
from tests.faults.ledger import Kind
from tests.faults.scenarios.replicas import MIDWAY
from tests.faults.services import Deployment, Plan, Replica

MIB = 1 << 20

_DESCRIPTORS = 1024  # what a shell gives by default
_HELD_SECONDS = 30.0


class MountError(Exception):
    """A file system cannot be mounted: the reason."""


@contextlib.contextmanager
def small_disk(at: Path, size: int) -> Iterator[Path]:
    """A file system of some bytes in memory.

    Raises:
        MountError: It is not permitted.
    """
    at.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(at)],  # noqa: S607  # on the PATH
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise MountError(f"mount: {done.stderr.strip()}")
    try:
        yield at
    finally:
        subprocess.run(["umount", "--lazy", str(at)], check=False)  # noqa: S607  # on the PATH


def fill(folder: Path) -> Path:
    """Take all free bytes of a file system. Returns the file that has them."""
    taken = folder / "taken"
    with taken.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    return taken


async def full_disk(bench: Bench) -> Row:
    """Bundle, caches, temporary files and logs are on a disk that is full for a while; two services start meanwhile."""
    folder = bench.folder("disk")
    with contextlib.ExitStack() as stack:
        try:
            disk = stack.enter_context(small_disk(folder, bench.size(bench.bundle) + 8 * MIB))
        except (MountError, FileNotFoundError) as error:
            return Row("full-disk", skipped=str(error))
        bundle, temporary = bench.copy_bundle(disk / "bundle"), disk / "tmp"
        temporary.mkdir()
        modules = ("vision_service", "decoder_service", "gateway")
        plan = Plan(
            bundle,
            environment={name: {"TMPDIR": str(temporary), "XDG_CACHE_HOME": str(disk)} for name in modules},
            flags={"decoder_service": ("--cache-dir", str(disk / "cache"))},
            log={name: disk / f"{name}.log" for name in modules},
        )
        async with bench.own(plan, "full-disk") as deployment:

            async def fault(load: Load) -> None:
                taken = fill(disk)
                try:
                    for replica in (deployment.vision[0], deployment.decoders[0]):
                        replica.kill()
                        shutil.rmtree(disk / "cache", ignore_errors=True)
                        shutil.rmtree(bundle / "measured", ignore_errors=True)
                        with taken.open("ab", buffering=0) as file, contextlib.suppress(OSError):
                            while True:
                                file.write(bytes(4096))
                        replica.start()
                        await replica.serving()
                    await asyncio.sleep(5)
                finally:
                    taken.unlink()

            return await bench.under_load("full-disk", deployment, fault, allowed=MIDWAY)


async def descriptors(bench: Bench, tier: str) -> Row:
    """Idle connections, twice as many as a service may have descriptors, are held on every port of one replica.

    Those who are connected are answered. A new client is answered while the idle connections are still held.
    """
    name = f"descriptors-{tier}"
    module = tier if tier == "gateway" else f"{tier}_service"
    plan = Plan(bench.bundle, prefix={module: ("prlimit", f"--nofile={_DESCRIPTORS}:{_DESCRIPTORS}")})
    async with bench.own(plan, name) as deployment:
        victim = {"vision": deployment.vision, "decoder": deployment.decoders, "gateway": deployment.gateways_list}[
            tier
        ][0]
        figures: dict[str, object] = {}
        problems: list[str] = []

        async def fault(load: Load) -> None:
            logged, used = victim.log.stat().st_size, _cpu(victim)
            with _idle(victim, 2 * _DESCRIPTORS):
                began = time.monotonic()
                if tier == "gateway":
                    seconds = await _newcomer(bench, deployment.gateways)
                    figures["new client answered, s"] = seconds
                    if seconds is None:
                        problems.append(
                            f"no new client was answered in {_HELD_SECONDS:g} s while idle connections were held"
                        )
                await asyncio.sleep(max(0.0, began + _HELD_SECONDS / 2 - time.monotonic()))
                held = time.monotonic() - began
                figures["log, bytes/s"] = round((victim.log.stat().st_size - logged) / held)
                figures["CPU"] = round((_cpu(victim) - used) / held, 2)

        row = await bench.under_load(name, deployment, fault, allowed=MIDWAY if tier == "decoder" else ())
        row.figures |= figures
        row.problems += problems
        if float(str(figures["log, bytes/s"])) > 100_000:
            row.problems.append(f"the log grew by {figures['log, bytes/s']} bytes/s")
        return row


def _cpu(replica: Replica) -> float:
    times = psutil.Process(replica.pid).cpu_times()
    return float(times.user + times.system)


@contextlib.contextmanager
def _idle(replica: Replica, many: int) -> Iterator[None]:
    """Connections that send nothing, on each port of a replica."""
    ports = [replica.address, *([replica.http.removeprefix("http://")] if replica.http_port else [])]
    with contextlib.ExitStack() as stack:
        for address in ports:
            host, _, port = address.rpartition(":")
            for _ in range(many):
                with contextlib.suppress(OSError):
                    stack.enter_context(socket.create_connection((host, int(port)), timeout=1))
        yield


async def _newcomer(bench: Bench, gateways: Gateways) -> float | None:
    """Seconds until a client that connects now has an answer over HTTP; None if there is none in time."""
    began = time.monotonic()
    question = next(iter(bench.answers))
    while (left := began + _HELD_SECONDS - time.monotonic()) > 0:
        asker = Asker(f"newcomer-{began}", bench.answers, seconds=min(10.0, left))
        door = HttpDoor(gateways.http, stream=False)
        try:
            if (await asker.ask(door, question)).kind is Kind.RIGHT:
                return round(time.monotonic() - began, 1)
        finally:
            await door.close()
        await asyncio.sleep(0.5)
    return None


async def memory(bench: Bench, tier: str) -> Row:
    """One replica may take no more memory for a while: its address space is limited to what it has."""
    deployment = await bench.shared(gateways=2)
    name = f"memory-{tier}"
    victim = {"vision": deployment.vision, "decoder": deployment.decoders, "gateway": deployment.gateways_list}[tier][0]
    died: list[str] = []

    async def fault(load: Load) -> None:
        for process in victim.processes():
            process.rlimit(psutil.RLIMIT_AS, (process.memory_info().vms + MIB, psutil.RLIM_INFINITY))
        try:
            await asyncio.sleep(bench.lengths.partition)
        finally:
            if victim.exit_code is None:
                for process in victim.processes():
                    process.rlimit(psutil.RLIMIT_AS, (psutil.RLIM_INFINITY, psutil.RLIM_INFINITY))
            else:
                died.append(f"{victim.exit_code}")
                victim.start()
                await victim.serving()

    allowed = ("OUT_OF_MEMORY", *MIDWAY) if tier != "gateway" else ("OUT_OF_MEMORY",)
    row = await bench.under_load(name, deployment, fault, allowed=allowed, cut=tier == "gateway")
    row.figures["exit codes"] = ", ".join(died) or "none"
    return row


_LIMITS = (150, 300, 600, 1200, 2400, 4800)
"""MiB of address space."""


async def memory_start(bench: Bench) -> Row:
    """Each service is started with less memory than it needs: it serves, or ends with one sentence and no traceback."""
    await bench.close()
    row = Row("memory-start")
    for module in ("vision_service", "decoder_service", "gateway"):
        seen = []
        for limit in _LIMITS:
            prefix = ("prlimit", f"--as={limit * MIB}")
            tiers = {"vision_service": 0, "decoder_service": 0, "gateway": 0} | {module: 1}
            plan = Plan(
                bench.bundle, vision=tiers["vision_service"], decoders=tiers["decoder_service"],
                gateways=tiers["gateway"], prefix={module: prefix},
            )  # fmt: skip
            deployment = Deployment(plan, bench.folder(f"memory-{module}-{limit}"))
            (replica,) = deployment.replicas
            replica.start()
            state = await _state(replica, waits=module == "gateway")
            code = await replica.stop(20)
            log = replica.log.read_text(errors="replace")
            seen.append(f"{limit}: {state}")
            if state == "serves":
                break
            where = f"{module} with {limit} MiB"
            if "Traceback" in log or "terminate called" in log:
                row.problems.append(f"{where}: not one sentence but {log.strip().splitlines()[-1][:160]!r}")
            if code < 0 or state == "hangs":
                row.problems.append(f"{where}: {state}, ended with {code}")
        row.figures[module] = ", ".join(seen)
    return row


async def _state(replica: Replica, *, waits: bool, seconds: float = 60.0) -> str:
    """What became of a service that was started.

    Args:
        replica: The service.
        waits: Whether it waits for others, and never serves here: a gateway that still runs after ten seconds is well.
        seconds: When it hangs.
    """
    began = time.monotonic()
    while time.monotonic() - began < (10 if waits else seconds):
        if replica.exit_code is not None:
            return f"ends with {replica.exit_code}"
        if not waits and await replica.healthy():
            return "serves"
        await asyncio.sleep(0.2)
    return "serves" if waits else "hangs"
