"""The server's side of the engine on onnxruntime-genai; the library runs in a child process.

The child is spawned, never forked, and for the first time before the server opens its port. Features are sent through
the pipe: 20 MiB (1,280 tokens of the 4B model) took 25 ms, and 19 ms through shared memory, while a prefill takes many
seconds. A pipe needs no space in /dev/shm, of which a container has 64 MiB, and leaves nothing to clean up.
"""

from __future__ import annotations

import asyncio
import atexit
import collections
import contextlib
import itertools
import multiprocessing
import os
import threading
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from decoder_service.engine.genai import child as child_process
from decoder_service.engine.genai.messages import (
    Cancel,
    CannotLoad,
    Ended,
    PromptPrefilled,
    Ready,
    Run,
    Shutdown,
    ToChild,
    Token,
    ToParent,
    WorkerConfig,
)
from decoder_service.engine.interface import (
    EngineError,
    EngineEvent,
    EngineFinished,
    EngineInfo,
    EngineRequest,
    Prefilled,
)
from decoder_service.engine.supervisor import Supervisor, events_of, failed, not_ready
from serving.errors import Reason, ServiceError, unavailable

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

log = structlog.get_logger()

_EXIT_SECONDS = 2.0


@dataclass(eq=False)
class _Job:
    """A request in the engine."""

    number: int
    request: EngineRequest
    queued_at: float  # or when its features were complete
    events: asyncio.Queue[EngineEvent | ServiceError] = field(default_factory=asyncio.Queue)
    queue_seconds: float = 0.0
    over: bool = False

    @property
    def ready(self) -> bool:
        return self.request.features.complete


class _Child:
    """One child process and the pipe to it.

    `start` must be called on a thread that lives as long as the child may: Linux kills it when that thread ends.

    Args:
        config: What it loads.
        on_message: Called on the event loop with each message of the child.
        on_end: Called on the event loop once, after the last message.
    """

    def __init__(
        self, config: WorkerConfig, on_message: Callable[[ToParent], None], on_end: Callable[[], None]
    ) -> None:
        self._config = config
        self._on_message = on_message
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        # One thread writes, so messages keep their order and the event loop never blocks on a full pipe.
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="engine-writer")
        self._connection: Connection | None = None
        self._process: SpawnProcess | None = None
        self._reader: threading.Thread | None = None

    @property
    def pid(self) -> int | None:
        """Its process id."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=child_process.main, args=(theirs, self._config, os.getpid()), name="triptych-engine", daemon=True
        )
        self._process.start()
        theirs.close()  # otherwise the pipe would never report its end
        # The child ignores the SIGTERM that multiprocessing sends when this process exits without `stop`.
        atexit.register(self._process.kill)
        self._reader = threading.Thread(target=self._read, args=(self._connection,), name="engine-reader", daemon=True)
        self._reader.start()

    def _read(self, connection: Connection) -> None:
        with contextlib.suppress(EOFError, OSError, RuntimeError):  # RuntimeError: the loop is closed
            while True:
                message: ToParent = connection.recv()
                self._loop.call_soon_threadsafe(self._on_message, message)
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._on_end)

    def send(self, message: ToChild, *payload: memoryview) -> None:
        """Send a message in the background. It is dropped if the child has ended, which `on_end` reports."""
        connection = self._connection
        assert connection is not None  # noqa: S101  # started

        def write() -> None:
            with contextlib.suppress(OSError):
                connection.send(message)
                for part in payload:
                    connection.send_bytes(part)

        with contextlib.suppress(RuntimeError):  # the writer has been shut down with the child
            self._writer.submit(write)

    async def stop(self) -> int | None:
        """End the child, by SIGKILL if it does not exit.

        Returns:
            Its exit code.
        """
        process = self._process
        if process is None:
            return None
        self.send(Shutdown())
        await asyncio.to_thread(process.join, _EXIT_SECONDS)
        if process.is_alive():
            process.kill()
            await asyncio.to_thread(process.join)
        atexit.unregister(process.kill)
        self._writer.shutdown(wait=False, cancel_futures=True)
        if self._reader is not None:
            await asyncio.to_thread(self._reader.join)  # it must not read from a closed descriptor
        if self._connection is not None:
            self._connection.close()
        return process.exitcode


class GenaiEngine:
    """Processes one request at a time, first come first served; requests whose features are missing are skipped.

    If the child dies, its current request fails. Waiting requests stay in the queue until the next child is ready; new
    ones are refused meanwhile.

    Args:
        config: What the child loads.
    """

    def __init__(self, config: WorkerConfig) -> None:
        self._config = config
        self._waiting: collections.deque[_Job] = collections.deque()
        self._running: _Job | None = None
        self._numbers = itertools.count(1)
        self._child: _Child | None = None
        self._loaded: asyncio.Future[Ready | CannotLoad] | None = None
        self._supervisor = Supervisor(self._spawn, on_ready=self._dispatch, on_failure=self._fail_waiting)

    @property
    def info(self) -> EngineInfo:
        """Description of the engine."""
        return EngineInfo(
            name="genai",
            provider=self._config.provider,
            threads=self._config.threads,
            slots=1,
            own_positions=True,
        )

    @property
    def ready(self) -> bool:
        """Whether a new request would be accepted."""
        return self._supervisor.ready

    @property
    def child_pid(self) -> int | None:
        """Process id of the child, for monitoring and tests."""
        return self._child.pid if self._child else None

    async def start(self, set_ready: Callable[[bool], None]) -> None:
        """Spawn the child and wait until it is warm.

        Args:
            set_ready: Called with later changes of readiness.

        Raises:
            EngineError: The model cannot be loaded, or its bundle is not for this library.
        """
        _check_is_for_library(Path(self._config.model_dir))
        await self._supervisor.start(set_ready)

    async def _spawn(self) -> None:
        loaded: asyncio.Future[Ready | CannotLoad] = asyncio.get_running_loop().create_future()
        self._loaded = loaded
        child = _Child(self._config, lambda message: self._on_message(child, message), lambda: self._lose(child))
        self._child = child
        child.start()
        try:
            answer = await loaded
        except BaseException:
            await child.stop()
            raise
        if isinstance(answer, CannotLoad):
            await child.stop()
            raise EngineError(f"the language model cannot be loaded: {answer.error}")
        log.info("engine ready", pid=child.pid, load_seconds=round(answer.load_seconds, 2), **vars(self.info))

    async def generate(self, request: EngineRequest) -> AsyncGenerator[EngineEvent, None]:
        """Continue a prompt: `Prefilled`, tokens, `EngineFinished`. See `Engine.generate`."""
        if not self.ready:
            raise not_ready(self._supervisor.backoff)
        job = _Job(next(self._numbers), request, time.perf_counter())
        self._waiting.append(job)
        request.features.when_put(lambda: self._supply(job))
        self._dispatch()
        try:
            async with contextlib.aclosing(events_of(job.events)) as events:
                async for event in events:
                    yield event
        finally:
            self._abandon(job)

    def _abandon(self, job: _Job) -> None:
        if job.over:
            return
        if job is self._running:
            # It stays the current job until the child has sent Ended.
            if self._child is not None:
                self._child.send(Cancel(job.number))
        elif job in self._waiting:
            self._waiting.remove(job)

    def _supply(self, job: _Job) -> None:
        """Handle an array of features that has arrived."""
        if job.ready:
            job.queued_at = time.perf_counter()
            self._dispatch()

    def _dispatch(self) -> None:
        """Send the child the next request, if it has none."""
        job = next((job for job in self._waiting if job.ready), None)
        if not self.ready or self._running is not None or job is None or self._child is None:
            return
        self._running = job
        self._waiting.remove(job)
        request = job.request
        arrays = [rows for rows in request.features.arrays if rows.size]
        job.queue_seconds = time.perf_counter() - job.queued_at
        self._child.send(
            Run(
                job=job.number,
                token_ids=request.token_ids,
                feature_rows=tuple(len(rows) for rows in arrays),
                inputs=request.inputs,
                sampling=request.sampling,
                max_new_tokens=request.max_new_tokens,
                stop_token_ids=request.stop_token_ids,
            ),
            *(rows.data.cast("B") for rows in arrays),
        )

    def _on_message(self, child: _Child, message: ToParent) -> None:
        if child is not self._child:
            return
        if isinstance(message, Ready | CannotLoad):
            if self._loaded is not None and not self._loaded.done():
                self._loaded.set_result(message)
            return
        job = self._running
        if job is None or job.number != message.job:
            return
        if isinstance(message, PromptPrefilled):
            job.events.put_nowait(Prefilled(job.queue_seconds, message.seconds))
        elif isinstance(message, Token):
            job.events.put_nowait(message.drawn)
        else:
            self._end(job, message)

    def _end(self, job: _Job, ended: Ended) -> None:
        job.over = True
        self._running = None
        self._supervisor.proven()
        if ended.error is not None:
            log.error("request failed in the engine", request_id=job.request.request_id, traceback=ended.error)
            job.events.put_nowait(failed())
        elif ended.reason is not None:
            job.events.put_nowait(EngineFinished(ended.reason))
        self._dispatch()

    def _lose(self, child: _Child) -> None:
        """Handle the end of the child."""
        if child is not self._child:
            return
        if self._loaded is not None and not self._loaded.done():
            self._loaded.set_result(CannotLoad("its process died while it loaded; is there enough memory?"))
            return
        if self._supervisor.stopping or not self.ready:
            return
        self._supervisor.unready()
        if self._running is not None:
            self._running.over = True
            self._running.events.put_nowait(
                unavailable(
                    Reason.ENGINE_LOST,
                    "the engine's process died during this request",
                    retry_after=self._supervisor.backoff,
                )
            )
            self._running = None
        self._supervisor.revive(lambda: self._clean_up(child))

    async def _clean_up(self, dead: _Child) -> None:
        exit_code = await dead.stop()
        log.error("engine process died", pid=dead.pid, exit_code=exit_code)

    def _fail_waiting(self) -> None:
        while self._waiting:
            job = self._waiting.popleft()
            job.over = True
            job.events.put_nowait(
                unavailable(Reason.ENGINE_LOST, "the engine's process is gone", retry_after=self._supervisor.backoff)
            )

    async def stop(self) -> None:
        """End the child. Unfinished requests fail with UNAVAILABLE."""
        await self._supervisor.stop()
        if self._running is not None:
            self._waiting.appendleft(self._running)
            self._running = None
        self._fail_waiting()
        if self._child is not None:
            await self._child.stop()
            self._child = None


def _check_is_for_library(folder: Path) -> None:
    """Check that the exporter has written the library's configuration; it does where the library has the model."""
    if folder.is_dir() and not (folder / "genai_config.json").is_file():
        raise EngineError("onnxruntime-genai cannot run this model family: use --engine batch")
