"""An engine in a process and an environment of its own."""

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
    """A running one. Made by `started`.

    Args:
        name: What the race calls it.
        process: Its process.
        seconds: Longest wait for an answer.
    """

    def __init__(self, name: str, process: asyncio.subprocess.Process, seconds: float) -> None:
        self._name = name
        self._process = process
        self._seconds = seconds
        self.versions: dict[str, str] = {}
        """Of its libraries."""
        self.load_seconds = 0.0
        """What loading took."""

    async def ready(self) -> None:
        """Wait until it has loaded.

        Raises:
            BenchError: It cannot.
        """
        answer = await self._hear()
        self.versions, self.load_seconds = answer["ready"], answer["seconds"]

    async def ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """Have something done.

        Returns:
            Its answer; where it cannot do that at all, the reason is in `cannot`.

        Raises:
            BenchError: It failed, ended or took too long.
        """
        assert self._process.stdin is not None  # noqa: S101  # it was made with a pipe
        with contextlib.suppress(ConnectionError):  # it has ended, which `_hear` tells
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            await self._process.stdin.drain()
        return await self._hear()

    async def _hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None  # noqa: S101  # it was made with a pipe
        try:
            async with asyncio.timeout(self._seconds):
                line = await self._process.stdout.readline()
        except TimeoutError as error:
            raise BenchError(f"{self._name} did not answer within {self._seconds:g} seconds") from error
        if not line:
            raise BenchError(f"{self._name} ended with code {await self._process.wait()}; it has said why above")
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
    """A peer that has loaded, for as long as the block runs.

    Args:
        name: What the race calls it.
        python: The interpreter of its environment.
        module: What that runs.
        arguments: Its arguments.
        environment: More variables than this process has.
        seconds: Longest wait for an answer.

    Raises:
        BenchError: It cannot be started or cannot load.
    """
    paths = os.pathsep.join((str(ROOT), str(ROOT / "protos")))  # its environment does not hold this project
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
        # And what it has started: memory and cores are wanted for the next.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


async def _left_to_end(process: asyncio.subprocess.Process) -> None:
    """Let it stop the servers that it has started."""
    assert process.stdin is not None  # noqa: S101  # it was made with a pipe
    process.stdin.close()
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(process.wait(), _END_SECONDS)
