"""The probe, as a container's health check runs it, against a real server."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from pathlib import Path

import pytest

from serving.server import serve
from serving.settings import ServerSettings
from tests.serving.test_server import Echo

ROOT = Path(__file__).parents[2]


async def probe(*arguments: str, **variables: str) -> tuple[int | None, str]:
    """Run the probe as a process of its own: its exit code, and what it printed."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "protos")]), **variables}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "serving.probe", *arguments, stdout=asyncio.subprocess.PIPE, env=environment
    )
    try:
        printed, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    return process.returncode, printed.decode().strip()


async def test_the_probe_follows_the_health_of_a_server() -> None:
    """Exit code 0 while the server is SERVING, 1 once it says NOT_SERVING."""
    service, stop = Echo(), asyncio.Event()
    port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(serve(service, ServerSettings(), on_listening=port.set_result, stop=stop))
    await asyncio.wait([task, port], return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        await task  # raises why it did not start
    try:
        address = f"127.0.0.1:{port.result()}"
        assert await probe(address) == (0, "SERVING")
        assert service.set_serving is not None
        service.set_serving(False)
        assert await probe(address) == (1, "NOT_SERVING")
    finally:
        stop.set()
        await task


async def test_no_server_is_exit_code_1() -> None:
    """Where nothing listens the probe fails and says so."""
    with socket.socket() as held:  # bound, so that nothing else takes the port, and not listening
        held.bind(("127.0.0.1", 0))
        code, said = await probe(f"127.0.0.1:{held.getsockname()[1]}")
    assert code == 1
    assert said.startswith("no answer: UNAVAILABLE")


@pytest.mark.parametrize("arguments", [(), ("a", "b"), ("a", "B_", "c"), ("--help",)])
async def test_wrong_usage_is_exit_code_2(arguments: tuple[str, ...]) -> None:
    """The probe takes an address and a prefix, and nothing else."""
    assert (await probe(*arguments))[0] == 2
