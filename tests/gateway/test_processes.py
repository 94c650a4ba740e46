"""Several processes of the gateway on one pair of ports, as real processes in front of fake tiers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import urllib.request
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from serving.transport import PortError, ReservedPorts, hold_port, open_http_port
from tests.gateway.fakes import MODEL, FakeDecoder, FakeVision, GenerateCall, serve
from triptych import AsyncClient, Delta, Finished

_SECONDS = 120.0
_ROOT = Path(__file__).parents[2]


@dataclass
class Group:
    """A gateway of several processes.

    Attributes:
        process: The parent.
        port: gRPC port.
        http: HTTP port.
        metrics: Metrics port.
        flags: Its flags.
    """

    process: asyncio.subprocess.Process
    port: int
    http: int
    metrics: int
    flags: list[str]

    @property
    def address(self) -> str:
        """Of the gRPC port."""
        return f"127.0.0.1:{self.port}"

    async def logged(self, event: str) -> dict[str, object]:
        """The next line of the log with this event."""
        assert self.process.stderr is not None
        while line := await asyncio.wait_for(self.process.stderr.readline(), _SECONDS):
            with contextlib.suppress(ValueError):
                fields: dict[str, object] = json.loads(line)
                if fields["event"] == event:
                    return fields
        raise AssertionError(f"the log ended without {event!r}")

    def serving(self, port: int) -> set[int]:
        """The processes that listen on a port."""
        children = psutil.Process(self.process.pid).children()
        return {
            child.pid
            for child in children
            for connection in child.net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
        }


async def _start(*flags: str) -> asyncio.subprocess.Process:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (_ROOT, _ROOT / "protos")))}
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gateway", "--log-format", "json", *flags, stderr=asyncio.subprocess.PIPE, env=environment
    )


@contextlib.asynccontextmanager
async def _group(vision: FakeVision, decoder: FakeDecoder) -> AsyncIterator[Group]:
    """Two processes, in front of these tiers."""
    ports = ReservedPorts("127.0.0.1")
    port, http, metrics = (ports.reserve() for _ in range(3))
    ports.release()
    async with serve(vision) as (vision_address, _), serve(decoder) as (decoder_address, _):
        flags = ["--vision", vision_address, "--decoder", decoder_address, "--port", str(port)]
        flags += ["--http-port", str(http), "--parent-pid", str(os.getpid())]
        process = await _start(*flags, "--processes", "2", "--metrics-port", str(metrics))
        try:
            yield Group(process, port, http, metrics, flags)
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            await process.communicate()


async def _get(port: int, path: str) -> str:
    def get() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=_SECONDS) as response:
            return str(response.read().decode())

    return await asyncio.to_thread(get)


async def _models(address: str) -> list[str]:
    async with AsyncClient(address) as client:  # a new connection
        return await client.models()


async def test_processes_share_the_ports(vision: FakeVision, decoder: FakeDecoder) -> None:
    """Both listen on both ports, their metrics are added up, a dead one is replaced, and no other gateway gets in."""
    async with _group(vision, decoder) as group:
        await group.logged("processes serve")
        before = group.serving(group.port)
        assert len(before) == 2
        assert group.serving(group.http) == before

        assert await asyncio.gather(*(_models(group.address) for _ in range(12))) == [[MODEL]] * 12
        assert MODEL in await _get(group.http, "/v1/models")
        counted = await _get(group.metrics, "/metrics")
        assert 'triptych_rpc_total{code="OK",method="/vlm.v1.Gateway/ListModels"} 12.0' in counted
        assert 'triptych_replicas{state="available",tier="decoder"} ' in counted  # not one for each process
        assert 'triptych_rpc_running{method="/vlm.v1.Gateway/ListModels"} 0.0' in counted

        others = await asyncio.gather(_start(*group.flags), _start(*group.flags, "--processes", "2"))
        for other in others:
            _, said = await other.communicate()
            assert other.returncode == 1
            assert "cannot listen on 127.0.0.1:" in said.decode()
            assert "is the port taken" in said.decode()

        killed = before.pop()
        os.kill(killed, signal.SIGKILL)
        assert (await group.logged("process ended"))["pid"] == killed
        assert await _models(group.address) == [MODEL]
        while len(after := group.serving(group.http)) < 2:
            await group.logged("serving http")
        assert killed not in after
        assert after & before


async def test_processes_drain(vision: FakeVision, decoder: FakeDecoder) -> None:
    """SIGTERM to the parent: each process lets its running answers finish, and the exit code is 0."""
    go_on, all_held = asyncio.Event(), asyncio.Event()
    held: list[GenerateCall] = []

    async def hold(call: GenerateCall, stage: str) -> None:
        if stage == "delta" and call not in held:
            held.append(call)
            if len(held) == 4:
                all_held.set()
            await go_on.wait()

    decoder.hook = hold
    async with _group(vision, decoder) as group, contextlib.AsyncExitStack() as stack:
        await group.logged("processes serve")
        clients = [await stack.enter_async_context(AsyncClient(group.address, retries=0)) for _ in range(4)]

        async def answer(client: AsyncClient) -> list[type]:
            return [type(event) async for event in client.chat("Hello")]

        answers = [asyncio.create_task(answer(client)) for client in clients]
        await all_held.wait()
        group.process.terminate()
        assert await group.logged("draining")
        go_on.set()
        for kinds in await asyncio.gather(*answers):
            assert kinds.count(Delta) == 3
            assert kinds[-1] is Finished
        _, said = await group.process.communicate()
        assert group.process.returncode == 0
        assert b"Traceback" not in said


async def test_a_process_that_cannot_start_ends_all(vision: FakeVision) -> None:
    """Its cause is printed, and the exit code is 1, as with one process."""
    async with _group(vision, FakeDecoder(fingerprint="1" * 64)) as group:
        _, said = await group.process.communicate()
        assert group.process.returncode == 1
        assert "start both from the same bundle" in said.decode()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells a process of its parent's death")
async def test_processes_that_wait_for_a_tier_do_not_outlive_their_parent() -> None:
    """A parent that is killed outright takes along those that do not serve yet."""
    ports = ReservedPorts("127.0.0.1")
    nobody, port = ports.reserve(), ports.reserve()
    ports.release()
    flags = ["--vision", "off", "--decoder", f"127.0.0.1:{nobody}", "--port", str(port), "--http-port", "off"]
    process = await _start(*flags, "--processes", "2")
    children: list[psutil.Process] = []
    try:
        assert await Group(process, port, 0, 0, flags).logged("waiting for a tier")
        children += psutil.Process(process.pid).children()
        assert len(children) == 2
        process.kill()
        _, alive = await asyncio.to_thread(psutil.wait_procs, children, _SECONDS / 4)
        assert not alive
    finally:
        for each in (process, *children):
            with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
                each.kill()
        await process.communicate()


def test_a_held_port_can_only_be_shared() -> None:
    """While it is held, a server that shares it can listen; one that does not, and another holder, cannot."""
    with hold_port("127.0.0.1", 0) as held:
        port = held.getsockname()[1]
        for _ in range(2):
            with pytest.raises(PortError):
                open_http_port("127.0.0.1", port)
            with pytest.raises(PortError):
                hold_port("127.0.0.1", port)
        with (
            open_http_port("127.0.0.1", port, shared=True),
            open_http_port("127.0.0.1", port, shared=True),
            pytest.raises(PortError),
        ):
            hold_port("127.0.0.1", port)
    open_http_port("127.0.0.1", port).close()
