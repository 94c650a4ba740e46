"""The engine that answers many requests at once, on plain ONNX Runtime.

It computes in a thread of its own: `InferenceSession.run` releases the interpreter's lock, so the event loop, with its
health checks and other streams, goes on beside it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import queue
import threading
import time
import traceback
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import onnxruntime
import structlog

from decoder_service.engine.calibration import CHUNKS, calibrate, widths
from decoder_service.engine.interface import EngineError, EngineEvent, EngineFinished, EngineInfo, EngineRequest
from decoder_service.engine.kv import KvCache, granule
from decoder_service.engine.pace import Measurements, Pace, Speed
from decoder_service.engine.runner import Runner
from decoder_service.engine.scheduler import Scheduler
from decoder_service.engine.slots import Slots
from decoder_service.engine.stepper import Job, Shape, Stepper, failed
from serving.bundle import Bundle
from serving.errors import ServiceError, too_large, unavailable

log = structlog.get_logger()

_SHORTEST_CONTEXT = 64
_FIRST_BACKOFF_SECONDS = 0.5
_LAST_BACKOFF_SECONDS = 30.0


@dataclass(frozen=True)
class BatchConfig:
    """What the engine loads, and what it may take.

    Attributes:
        bundle: The model.
        threads: Threads for one operator.
        slots: Requests that run at once.
        context_length: Most tokens of a prompt and its answer.
        kv_bytes: Memory for keys and values, of running requests and of caches together.
        chunk_tokens: Most tokens of a prompt in one step.
        stall: While requests answer: most time to read prompts in a step, in steps that only answer.
        cached_prompts: How many finished requests' keys and values are kept, beside those in free slots; 0: none at
            all.
        cache_dir: Where measurements are kept if the bundle cannot be written.
    """

    bundle: Bundle
    threads: int
    slots: int = 8
    context_length: int = 32768
    kv_bytes: int = 4 << 30
    chunk_tokens: int = 512
    stall: float = 1.75
    cached_prompts: int = 8
    cache_dir: Path | None = None


@dataclass(eq=False)
class _Call:
    """A request as the event loop sees it."""

    request: EngineRequest
    queued_at: float
    events: asyncio.Queue[EngineEvent | ServiceError] = field(default_factory=asyncio.Queue)


@dataclass(frozen=True)
class _CallOff:
    """Nobody wants this request any more. It may be over already."""

    call: _Call


# To the thread; None ends it.
_Inbox = queue.SimpleQueue[_Call | _CallOff | None]


class BatchEngine:
    """Answers up to `slots` requests at once; more wait, first come first served.

    A request that fails fails alone. Should the thread itself break, by a mistake of ours, all requests that are here
    are lost, and the engine is loaded anew.

    Args:
        config: What it loads.
    """

    def __init__(self, config: BatchConfig) -> None:
        self._config = config
        self._max_tokens: int | None = None
        self._inbox: _Inbox = queue.SimpleQueue()
        self._calls: set[_Call] = set()
        self._thread: threading.Thread | None = None
        self._ready = False
        self._stopping = False
        self._set_ready: Callable[[bool], None] = lambda _: None
        self._reviving: asyncio.Task[None] | None = None

    @property
    def info(self) -> EngineInfo:
        """What it is."""
        return EngineInfo("batch", "cpu", self._config.threads, self._config.slots, self._max_tokens)

    @property
    def ready(self) -> bool:
        """Whether a request made now would be taken up."""
        return self._ready

    async def start(self, set_ready: Callable[[bool], None]) -> None:
        """Load the graphs, measure them and wait for requests.

        Args:
            set_ready: Told of later changes.

        Raises:
            EngineError: It cannot load the model.
        """
        self._set_ready = set_ready
        await self._load()

    async def _load(self) -> None:
        loop = asyncio.get_running_loop()
        loaded: asyncio.Future[int] = loop.create_future()
        self._inbox = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, args=(self._inbox, loop, loaded), name="engine", daemon=True)
        self._thread.start()
        self._max_tokens = await loaded
        self._ready = True

    async def generate(self, request: EngineRequest) -> AsyncGenerator[EngineEvent, None]:
        """Continue a prompt: `Prefilled`, tokens, `EngineFinished`. See `Engine.generate`."""
        if not self._ready or self._max_tokens is None:
            raise unavailable("ENGINE_NOT_READY", "the engine is being started again")
        need = request.token_ids.size + request.max_new_tokens
        if need > self._max_tokens:
            raise too_large(
                "messages",
                f"take {need} tokens with the longest answer, over the {self._max_tokens} that memory is kept for",
                reason="PROMPT_TOO_LONG",
                limit=self._max_tokens,
            )
        call = _Call(request, time.perf_counter())
        self._calls.add(call)
        self._inbox.put(call)
        try:
            while True:
                event = await call.events.get()
                if isinstance(event, ServiceError):
                    raise event
                yield event
                if isinstance(event, EngineFinished):
                    return
        finally:
            self._calls.discard(call)
            self._inbox.put(_CallOff(call))

    async def stop(self) -> None:
        """End the thread and free the memory. Requests that are left fail with UNAVAILABLE."""
        self._stopping = True
        self._ready = False
        if self._reviving is not None:
            self._reviving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reviving
        if self._thread is not None:
            self._inbox.put(None)
            await asyncio.to_thread(self._thread.join)
            self._thread = None
        self._lose("the engine is being stopped")

    def _lose(self, why: str) -> None:
        for call in self._calls:
            call.events.put_nowait(unavailable("ENGINE_LOST", why))
        self._calls.clear()

    def _break(self) -> None:
        """The thread has ended by a fault of its own."""
        self._ready = False
        self._set_ready(False)
        self._lose("the engine failed while it worked on this request")
        if not self._stopping:
            self._reviving = asyncio.get_running_loop().create_task(self._revive())

    async def _revive(self) -> None:
        """Load it until it loads, ever more slowly."""
        backoff = _FIRST_BACKOFF_SECONDS
        while True:
            await asyncio.sleep(backoff)
            backoff = min(2 * backoff, _LAST_BACKOFF_SECONDS)
            try:
                await self._load()
            except EngineError as error:
                log.error("engine cannot be started again", error=str(error), next_try_seconds=backoff)
            else:
                self._set_ready(True)
                return

    # The thread

    def _work(self, inbox: _Inbox, loop: asyncio.AbstractEventLoop, loaded: asyncio.Future[int]) -> None:
        # RuntimeError: the loop is closed, and nobody is left to tell.
        with contextlib.suppress(RuntimeError):
            try:
                worker = _Worker(self._config, inbox, loop)
            except Exception as error:  # noqa: BLE001  # whoever starts it makes a sentence of it
                sentence = f"the language model cannot be loaded: {error}"
                loop.call_soon_threadsafe(_settle, loaded, EngineError(sentence))
                return
            loop.call_soon_threadsafe(_settle, loaded, worker.max_tokens)
            try:
                worker.run()
            except Exception:  # noqa: BLE001  # health must turn, whatever it was
                log.critical("engine failed", traceback=traceback.format_exc())
                loop.call_soon_threadsafe(self._break)


def _settle(future: asyncio.Future[int], result: int | EngineError) -> None:
    if future.done():  # start was cancelled
        return
    if isinstance(result, EngineError):
        future.set_exception(result)
    else:
        future.set_result(result)


class _Worker:
    """What the thread owns.

    Args:
        config: What to load.
        inbox: Requests, those called off, and None for the end.
        loop: Where events go.
    """

    def __init__(self, config: BatchConfig, inbox: _Inbox, loop: asyncio.AbstractEventLoop) -> None:
        self._inbox = inbox
        self._loop = loop
        self._calls: dict[Job, _Call] = {}
        self._jobs: dict[_Call, Job] = {}
        self._said: list[tuple[_Call, EngineEvent | ServiceError]] = []
        bundle = config.bundle
        started = time.perf_counter()
        runner = Runner(
            {name: bundle.graph_path(name) for name in _graphs(bundle)},
            bundle.decoder_dir / "embedding.onnx",
            threads=config.threads,
            layers=bundle.text.num_hidden_layers,
        )
        loaded = time.perf_counter()
        text = bundle.text
        token_bytes = (
            2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * runner.cache_dtype.itemsize
        )
        step = granule(text.head_dim, runner.cache_dtype)
        budget = config.kv_bytes // token_bytes // step * step
        self.max_tokens = min(config.context_length, budget)
        if self.max_tokens < min(_SHORTEST_CONTEXT, config.context_length):
            raise ValueError(f"kv_cache_bytes has room for {budget} tokens, of {token_bytes} bytes each")
        if budget < config.context_length:
            log.warning("kv_cache_bytes shortens the context", tokens=budget, wanted=config.context_length)
        cache = KvCache(
            layers=text.num_hidden_layers,
            rows=config.slots + config.cached_prompts,
            heads=text.num_key_value_heads,
            length=self.max_tokens,
            width=text.head_dim,
            dtype=runner.cache_dtype,
        )
        runner.use(cache)
        speeds = _speeds(config, runner, self.max_tokens)
        for row in range(config.slots):
            cache.release(row)  # what measuring has written
        slots = Slots(
            cache,
            rows=config.slots + config.cached_prompts,
            running=config.slots,
            budget=budget,
            caching=config.cached_prompts > 0,
        )
        self._shape = Shape(bundle.tokens.image, bundle.vision.spatial_merge_size, bundle.feature_width)
        self._vocabulary = runner.vocabulary
        pace = Pace(speeds, chunk_tokens=config.chunk_tokens, stall=config.stall)
        self._stepper = Stepper(runner, Scheduler[Job](slots), pace, self._shape, self._hear)
        log.info(
            "engine ready",
            graphs=runner.graphs,
            threads=config.threads,
            slots=config.slots,
            kv_cache_tokens=budget,
            load_seconds=round(loaded - started, 2),
            measure_seconds=round(time.perf_counter() - loaded, 2),
        )

    def run(self) -> None:
        """Work until told to end."""
        while self._take_in():
            self._stepper.step()
            self._tell()

    def _take_in(self) -> bool:
        """Read what has come; where there is nothing to do, wait for it.

        Returns:
            Whether to go on.
        """
        while True:
            try:
                message = self._inbox.get(block=self._stepper.idle and not self._said)
            except queue.Empty:
                return True
            if message is None:
                return False
            if isinstance(message, _CallOff):
                job = self._jobs.pop(message.call, None)
                if job is not None:
                    del self._calls[job]
                    self._stepper.cancel(job)
                continue
            try:
                job = Job.of(message.request, self._shape, self._vocabulary, message.queued_at)
            except ValueError as error:
                log.error("request failed in the engine", request_id=message.request.request_id, error=str(error))
                self._said.append((message, failed()))
                continue
            self._jobs[message], self._calls[job] = job, message
            self._stepper.add(job)

    def _hear(self, job: Job, event: EngineEvent | ServiceError) -> None:
        call = self._calls[job]
        self._said.append((call, event))
        if isinstance(event, EngineFinished | ServiceError):
            del self._calls[job], self._jobs[call]

    def _tell(self) -> None:
        """Hand a step's events over, all at once."""
        if self._said:
            self._loop.call_soon_threadsafe(functools.partial(_deliver, self._said))
            self._said = []


def _deliver(said: list[tuple[_Call, EngineEvent | ServiceError]]) -> None:
    for call, event in said:
        call.events.put_nowait(event)


def _graphs(bundle: Bundle) -> list[str]:
    """The graphs to use: the bundle's own, and the one for wide steps and prompts where it has it."""
    return [bundle.decoder.precision, *(["int8"] if "int8" in bundle.decoder.graphs else [])]


def _speeds(config: BatchConfig, runner: Runner, room: int) -> dict[str, Speed]:
    """What was measured before of these graphs on this machine, or is measured now."""
    bundle = config.bundle
    folders = [bundle.root / "measured", *([config.cache_dir] if config.cache_dir is not None else [])]
    of = {
        "graphs": {name: bundle.files[bundle.decoder.graphs[name]].sha256 for name in runner.graphs},
        "threads": config.threads,
        "onnxruntime": onnxruntime.__version__,
        "widths": widths(config.slots),
        "chunks": [size for size in CHUNKS if size <= room],
    }
    kept = Measurements(folders, of)
    speeds = kept.load()
    if speeds is None:
        speeds = calibrate(runner, config.slots, room)
        kept.keep(speeds)
    return speeds
