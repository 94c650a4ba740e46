"""An engine in its own process and environment."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.errors import BenchError

ROOT = Path(__file__).parents[2]
_LINE_BYTES = 1 << 20
_END_SECONDS = 30.0


class Peer:
    """A running engine. Made by `started`.

    Args:
        name: Its name in the race.
        process: Its process.
        seconds: Timeout of an answer.
    """

    def __init__(self, name: str, process: asyncio.subprocess.Process, seconds: float) -> None:
        self._name = name
        self._process = process
        self._seconds = seconds
        self.versions: dict[str, str] = {}
        """Versions of its libraries."""
        self.load_seconds = 0.0
        """Load time in seconds."""

    async def ready(self) -> None:
        """Wait until it has loaded.

        Raises:
            BenchError: It cannot load.
        """
        answer = await self._receive()
        self.versions, self.load_seconds = answer["ready"], answer["seconds"]

    async def ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """Send a request, and wait for the answer.

        Returns:
            The answer; if the engine does not support the request, `cannot` has the reason.

        Raises:
            BenchError: It failed, ended or took too long.
        """
        assert self._process.stdin is not None  # noqa: S101  # made with a pipe
        with contextlib.suppress(ConnectionError):  # it has exited, which `_receive` reports
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            await self._process.stdin.drain()
        return await self._receive()

    async def _receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None  # noqa: S101  # made with a pipe
        try:
            async with asyncio.timeout(self._seconds):
                line = await self._process.stdout.readline()
        except TimeoutError as error:
            raise BenchError(f"{self._name} did not answer within {self._seconds:g} seconds") from error
        if not line:
            raise BenchError(f"{self._name} ended with code {await self._process.wait()}; its output is above")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise BenchError(f"{self._name} failed: {answer['error']}")
        return answer


@contextlib.asynccontextmanager
async def started(
    name: str,
    python: Path,
    module: str,
    arguments: list[str],
    *,
    environment: Mapping[str, str],
    seconds: float,
) -> AsyncIterator[Peer]:
    """Start a peer, and run it within the block.

    Args:
        name: Its name in the race.
        python: The interpreter of its environment.
        module: The module to run.
        arguments: Its arguments.
        environment: Additional environment variables.
        seconds: Timeout of an answer.

    Raises:
        BenchError: It cannot be started or cannot load.
    """
    paths = os.pathsep.join((str(ROOT), str(ROOT / "protos")))  # this project is not installed in its environment
    try:
        process = await asyncio.create_subprocess_exec(
            python,
            "-m",
            module,
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": paths, **environment},
            limit=_LINE_BYTES,
            start_new_session=True,
        )
    except OSError as error:
        raise BenchError(f"{name} cannot be started with {python}: {error.strerror}") from error
    try:
        peer = Peer(name, process, seconds)
        await peer.ready()
        yield peer
        await _left_to_end(process)
    finally:
        # Also its child processes: the next peer needs memory and cores.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


async def _left_to_end(process: asyncio.subprocess.Process) -> None:
    """Let the process stop the servers that it has started."""
    assert process.stdin is not None  # noqa: S101  # made with a pipe
    process.stdin.close()
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(process.wait(), _END_SECONDS)
