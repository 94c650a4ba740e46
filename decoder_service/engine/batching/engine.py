"""The event loop's side of the engine with continuous batching on plain ONNX Runtime.

The engine computes in its own thread: `InferenceSession.run` releases the interpreter's lock, so the event loop, with
its health checks and other streams, runs at the same time.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import AsyncGenerator, Callable

import structlog

from decoder_service.engine.batching.worker import BatchConfig, Call, Cancellation, Inbox, Supply, Worker
from decoder_service.engine.interface import EngineError, EngineEvent, EngineInfo, EngineRequest
from decoder_service.engine.supervisor import Supervisor, events_of, not_ready
from serving.errors import Reason, too_large, unavailable
from serving.logs import trace

log = structlog.get_logger()


class BatchEngine:
    """Processes up to `slots` requests at once; more wait, first come first served.

    A request that fails does not affect others. If the thread itself fails, by a bug, all running and waiting requests
    fail, and the engine is loaded again.

    Args:
        config: The model and its limits.
    """

    def __init__(self, config: BatchConfig) -> None:
        self._config = config
        self._max_tokens: int | None = None
        self._inbox: Inbox = queue.SimpleQueue()
        self._calls: set[Call] = set()
        self._thread: threading.Thread | None = None
        self._supervisor = Supervisor(self._load)

    @property
    def info(self) -> EngineInfo:
        """Description of the engine."""
        return EngineInfo("batch", "cpu", self._config.threads, self._config.slots, self._max_tokens, constraints=True)

    @property
    def ready(self) -> bool:
        """Whether a new request would be accepted."""
        return self._supervisor.ready

    async def start(self, set_ready: Callable[[bool], None]) -> None:
        """Load the graphs, measure them and wait for requests.

        Args:
            set_ready: Called with later changes of readiness.

        Raises:
            EngineError: The model cannot be loaded.
        """
        await self._supervisor.start(set_ready)

    async def _load(self) -> None:
        loop = asyncio.get_running_loop()
        loaded: asyncio.Future[int] = loop.create_future()
        self._inbox = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, args=(self._inbox, loop, loaded), name="engine", daemon=True)
        self._thread.start()
        self._max_tokens = await loaded

    async def generate(self, request: EngineRequest) -> AsyncGenerator[EngineEvent, None]:
        """Continue a prompt: `Prefilled`, tokens, `EngineFinished`. See `Engine.generate`."""
        if not self.ready or self._max_tokens is None:
            raise not_ready()
        need = request.token_ids.size + request.max_new_tokens
        if need > self._max_tokens:
            raise too_large(
                "messages",
                f"take {need} tokens with the longest answer, over the {self._max_tokens} that memory is kept for",
                reason=Reason.PROMPT_TOO_LONG,
                limit=self._max_tokens,
            )
        call = Call(request, time.perf_counter())
        self._calls.add(call)
        self._inbox.put(call)
        request.features.when_put(lambda: self._inbox.put(Supply(call, time.perf_counter())))
        try:
            async with contextlib.aclosing(events_of(call.events)) as events:
                async for event in events:
                    yield event
        finally:
            self._calls.discard(call)
            self._inbox.put(Cancellation(call))

    async def stop(self) -> None:
        """End the thread and free the memory. Unfinished requests fail with UNAVAILABLE."""
        await self._supervisor.stop()
        if self._thread is not None:
            self._inbox.put(None)
            await asyncio.to_thread(self._thread.join)
            self._thread = None
        self._lose("the engine is being stopped")

    def _lose(self, why: str) -> None:
        for call in self._calls:
            call.events.put_nowait(unavailable(Reason.ENGINE_LOST, why))
        self._calls.clear()

    def _break(self) -> None:
        """Handle a thread that ended by an error of its own."""
        self._supervisor.unready()
        self._lose("the engine failed while it worked on this request")
        if not self._supervisor.stopping:
            self._supervisor.proven()  # it had loaded: the first retry uses the shortest delay
            self._supervisor.revive()

    # The thread

    def _work(self, inbox: Inbox, loop: asyncio.AbstractEventLoop, loaded: asyncio.Future[int]) -> None:
        # RuntimeError: the event loop is closed, so no stream can receive the error.
        with contextlib.suppress(RuntimeError):
            try:
                worker = Worker(self._config, inbox, loop)
            except Exception as error:  # noqa: BLE001  # `start` reports it as an EngineError
                sentence = f"the language model cannot be loaded: {error}"
                loop.call_soon_threadsafe(_settle, loaded, EngineError(sentence))
                return
            loop.call_soon_threadsafe(_settle, loaded, worker.max_tokens)
            try:
                worker.run()
            except Exception:  # noqa: BLE001  # the health status must change after any failure
                log.critical("engine failed", traceback=trace())
                loop.call_soon_threadsafe(self._break)


def _settle(future: asyncio.Future[int], result: int | EngineError) -> None:
    if future.done():  # start was cancelled
        return
    if isinstance(result, EngineError):
        future.set_exception(result)
    else:
        future.set_result(result)
