"""The batch engine's thread: it loads the graphs, takes requests in between two steps, and tells what came of them."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import mmap
import queue
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import onnxruntime
import structlog

from decoder_service.engine.batching.calibration import CHUNKS, calibrate, prefill, widths
from decoder_service.engine.batching.kv import KvCache, granule, token_bytes
from decoder_service.engine.batching.pace import Measurements, Pace, Speed
from decoder_service.engine.batching.scheduler import Scheduler
from decoder_service.engine.batching.slots import Slots
from decoder_service.engine.batching.spare import LOOK_SECONDS, Disturbance, SpareCores
from decoder_service.engine.batching.stepper import Job, Stepper
from decoder_service.engine.interface import EngineEvent, EngineFinished, EngineRequest
from decoder_service.engine.onnx import operators
from decoder_service.engine.onnx.runner import Runner
from decoder_service.engine.supervisor import failed
from serving.bundle import Bundle
from serving.errors import ServiceError

log = structlog.get_logger()

_SHORTEST_CONTEXT = 64


@dataclass(frozen=True)
class BatchConfig:
    """What the engine loads, and what it may take.

    Attributes:
        bundle: The model.
        threads: Threads for one operator.
        slots: Requests that run at once.
        context_length: Most tokens of a prompt and its answer.
        kv_bytes: Memory for keys and values, of running requests and of caches together.
        parking_bytes: Memory beside it for those of parked requests; without it they are computed again.
        chunk_tokens: Most tokens of a prompt in one step.
        stall: While requests answer: how much longer a step may take because it also reads, in steps that only
            answer, for each prompt that could be read.
        read_ahead: Whether a prompt is read while some of its features are missing; auto: while cores are idle.
        cached_prompts: How many finished requests' keys and values are kept, beside those in free slots; 0: none at
            all.
        int8: Whether the bundle's int8 graph is used, too, where it has one.
        operators: Whether our own operators are used, where the processor has what they need.
        cache_dir: Where measurements are kept if the bundle cannot be written.
    """

    bundle: Bundle
    threads: int
    slots: int = 8
    context_length: int = 32768
    kv_bytes: int = 4 << 30
    parking_bytes: int = 1 << 30
    chunk_tokens: int = 512
    stall: float = 0.5
    read_ahead: Literal["auto", "on", "off"] = "auto"
    cached_prompts: int = 8
    int8: bool = True
    operators: bool = True
    cache_dir: Path | None = None


@dataclass(eq=False)
class Call:
    """A request between the event loop and the thread.

    Attributes:
        request: What is asked.
        queued_at: When it came, by `time.perf_counter`.
        events: What came of it, for the event loop.
        job: The same request in the stepper, while it is there. Belongs to the thread.
    """

    request: EngineRequest
    queued_at: float
    events: asyncio.Queue[EngineEvent | ServiceError] = field(default_factory=asyncio.Queue)
    job: Job | None = None


@dataclass(frozen=True)
class CallOff:
    """Nobody wants this request any more. It may be over already."""

    call: Call


@dataclass(frozen=True)
class Supply:
    """More of a request's features have come, at a time by `time.perf_counter`. It may be over already."""

    call: Call
    at: float


# To the thread; None ends it.
Inbox = queue.SimpleQueue[Call | Supply | CallOff | None]


class Worker:
    """What the thread owns.

    Args:
        config: What to load.
        inbox: Requests, what comes for them, those called off, and None for the end.
        loop: Where events go.
    """

    def __init__(self, config: BatchConfig, inbox: Inbox, loop: asyncio.AbstractEventLoop) -> None:
        self._inbox = inbox
        self._loop = loop
        self._pending: list[tuple[Call, EngineEvent | ServiceError]] = []
        bundle = config.bundle
        runner = _load(config)
        budget = _budget(config, runner)
        self.max_tokens = min(config.context_length, budget)
        cache = KvCache(
            layers=bundle.text.num_hidden_layers,
            rows=config.slots + config.cached_prompts,
            heads=bundle.text.num_key_value_heads,
            length=self.max_tokens,
            width=bundle.text.head_dim,
            dtype=runner.cache_dtype,
        )
        runner.use(cache.buffers)
        pace = Pace(_speeds(config, runner, self.max_tokens), chunk_tokens=config.chunk_tokens, stall=config.stall)
        # Else the first long prompt would take half as long again, for memory that later ones find there.
        largest = min(pace.room(0), self.max_tokens)
        prefill(runner, pace.graph(0, largest), largest)
        for row in range(config.slots):
            cache.release(row)  # what measuring and this have written
        slots = Slots(
            cache,
            rows=config.slots + config.cached_prompts,
            running=config.slots,
            budget=budget,
            caching=config.cached_prompts > 0,
            parking=config.parking_bytes // cache.bytes_per_token,
        )
        self._shape = runner.shape
        scheduler = Scheduler[Job](slots, read_ahead=config.read_ahead == "on")
        self._stepper = Stepper(runner, scheduler, pace, self._shape)
        self._cores = SpareCores() if config.read_ahead == "auto" else None
        log.info(
            "engine ready",
            threads=config.threads,
            slots=config.slots,
            kv_cache_tokens=budget,
            own_operators=_operators(config) is not None,
        )

    def run(self) -> None:
        """Work until told to end."""
        while self._take_in():
            self._look()
            self._stepper.decode()
            self._flush()  # what has been drawn does not wait until the prompts have been read
            self._stepper.prefill()
            self._flush()

    def _take_in(self) -> bool:
        """Read what has come; where there is nothing to do, wait for it.

        Returns:
            Whether to go on.
        """
        while True:
            # Cores may become idle without anybody saying so.
            patience = LOOK_SECONDS if self._cores is not None and self._stepper.expecting else None
            try:
                message = self._inbox.get(self._stepper.idle and not self._pending, patience)
            except queue.Empty:
                return True
            if message is None:
                return False
            if isinstance(message, CallOff):
                self._call_off(message.call)
            elif isinstance(message, Supply):
                self._supply(message)
            else:
                self._take_up(message)
            del message  # it may be long until the next one comes, and it holds features

    def _look(self) -> None:
        """See whether prompts are to be read ahead, while some could be."""
        if self._cores is None:
            return
        if self._stepper.expecting:
            self._stepper.read_ahead(self._cores.look(), time.perf_counter())
        else:
            self._cores.forget()

    def _take_up(self, call: Call) -> None:
        try:
            job = Job.of(call.request, self._shape, call.queued_at, functools.partial(self._on_event, call))
        except ValueError as error:
            log.error("request failed in the engine", request_id=call.request.request_id, error=str(error))
            self._pending.append((call, failed()))
            return
        call.job = job
        self._stepper.add(job)

    def _supply(self, supply: Supply) -> None:
        if supply.call.job is not None:
            self._stepper.supply(supply.call.job, supply.at)

    def _call_off(self, call: Call) -> None:
        job, call.job = call.job, None
        if job is not None:
            self._stepper.cancel(job)

    def _on_event(self, call: Call, event: EngineEvent | ServiceError) -> None:
        self._pending.append((call, event))
        if isinstance(event, EngineFinished | ServiceError):
            call.job = None

    def _flush(self) -> None:
        """Hand the events of half a step over, all at once."""
        if self._pending:
            self._loop.call_soon_threadsafe(functools.partial(_deliver, self._pending))
            self._pending = []


def _deliver(pending: list[tuple[Call, EngineEvent | ServiceError]]) -> None:
    for call, event in pending:
        call.events.put_nowait(event)


def _load(config: BatchConfig) -> Runner:
    """The bundle's own graph, and the one for wide steps and prompts where it has it and it is wanted."""
    bundle = config.bundle
    own = bundle.decoder.precision
    names = [own, *(["int8"] if config.int8 and "int8" in bundle.decoder.graphs else [])]
    runner = Runner(
        bundle.decoder_dir / "embedding.onnx",
        threads=config.threads,
        layers=bundle.text.num_hidden_layers,
        head_size=bundle.text.head_dim,
        operators=_operators(config),
    )
    for name in names:
        started, before = time.perf_counter(), _own_bytes()
        runner.load(name, bundle.graph_path(name))
        log.info(
            "graph loaded",
            precision=name,
            seconds=round(time.perf_counter() - started, 2),
            adds_mib=(_own_bytes() - before) >> 20,
        )
    return runner


def _operators(config: BatchConfig) -> Path | None:
    """The library of our own operators, if they are wanted and can be used here."""
    return operators.library() if config.operators else None


def _budget(config: BatchConfig, runner: Runner) -> int:
    """Tokens that may lie in memory, in whole pages."""
    text = config.bundle.text
    token = token_bytes(text.num_hidden_layers, text.num_key_value_heads, text.head_dim, runner.cache_dtype)
    step = granule(text.head_dim, runner.cache_dtype)
    budget = config.kv_bytes // token // step * step
    if budget < min(_SHORTEST_CONTEXT, config.context_length):
        raise ValueError(f"kv_cache_bytes has room for {budget} tokens, of {token} bytes each")
    if budget < config.context_length:
        log.warning("kv_cache_bytes shortens the context", tokens=budget, wanted=config.context_length)
    return budget


def _own_bytes() -> int:
    """Memory of this process, without pages of files, which the kernel may take back; 0 where it is not told."""
    try:
        _, resident, of_files, *_ = map(int, Path("/proc/self/statm").read_text().split())
        return (resident - of_files) * mmap.PAGESIZE
    except OSError:
        return 0


def _speeds(config: BatchConfig, runner: Runner, room: int) -> dict[str, Speed]:
    """What was measured before of these graphs on this machine, or is measured now."""
    bundle = config.bundle
    folders = [bundle.root / "measured", *([config.cache_dir] if config.cache_dir is not None else [])]
    of = {
        "graphs": {name: bundle.files[bundle.decoder.graphs[name]].sha256 for name in runner.graphs},
        "threads": config.threads,
        "onnxruntime": onnxruntime.__version__,
        "operators": hashlib.sha256(library.read_bytes()).hexdigest() if (library := _operators(config)) else None,
        "widths": widths(config.slots),
        "chunks": [size for size in CHUNKS if size <= room],
    }
    kept = Measurements(folders, of)
    speeds = kept.load()
    if speeds is None:
        speeds, quiet = calibrate(runner, config.slots, room, Disturbance())
        if quiet:
            kept.keep(speeds)
        else:
            log.info("measurements are not kept: other processes used the cores")
    return speeds
