"""The batch engine's thread: loads the graphs, accepts requests between steps, and sends events to the event loop."""

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

from decoder_service.engine.batching.calibration import CHUNKS, calibrate, check_logits, widths
from decoder_service.engine.batching.kv import KvCache, granule, token_bytes
from decoder_service.engine.batching.pace import Measurements, Pace, Speed
from decoder_service.engine.batching.scheduler import Scheduler
from decoder_service.engine.batching.slots import Slots
from decoder_service.engine.batching.spare import LOOK_SECONDS, Disturbance, SpareCores
from decoder_service.engine.batching.stepper import Job, Stepper
from decoder_service.engine.interface import EngineEvent, EngineFinished, EngineRequest
from decoder_service.engine.onnx import operators
from decoder_service.engine.onnx.operators import KvDtype
from decoder_service.engine.onnx.phases import LAYERS_AT_ONCE, Phases
from decoder_service.engine.onnx.runner import Runner
from decoder_service.engine.supervisor import failed
from serving.bundle import Bundle
from serving.errors import ServiceError
from serving.memory import usable_memory

log = structlog.get_logger()

_SHORTEST_CONTEXT = 64
_USUAL_KV_BYTES = 4 << 30


@dataclass(frozen=True)
class BatchConfig:
    """What the engine loads, and its limits.

    Attributes:
        bundle: The model.
        threads: Threads per operator.
        slots: Most requests that run at once.
        context_length: Most tokens of a prompt and its answer.
        kv_bytes: Memory of the KV cache, for running requests and prefix caches together; None: enough for one request
            of `context_length`, within bounds.
        kv_dtype: How our own attention stores keys and values.
        parking_bytes: Further memory for keys and values of parked requests; those without are computed again.
        chunk_tokens: Most prompt tokens to prefill in one step.
        stall: Mean slowdown of decode steps for each prompt being prefilled, as a fraction.
        read_ahead: Whether a prompt is prefilled while some of its features are missing; auto: while cores are idle.
        cached_prompts: Number of prefix caches beside those in free slots; 0 disables the prefix cache.
        cached_answers: Whether prefix caches include the answers, and not only the prompts.
        int8: Whether prompts are prefilled by the bundle's INT8 graph, if it has one.
        operators: Whether our own operators are used, if the processor supports them.
        cache_dir: Where measurements are stored if the bundle is not writable.
    """

    bundle: Bundle
    threads: int
    slots: int = 8
    context_length: int = 32768
    kv_bytes: int | None = None
    kv_dtype: KvDtype = "int8"
    parking_bytes: int = 1 << 30
    chunk_tokens: int = 512
    stall: float = 0.5
    read_ahead: Literal["auto", "on", "off"] = "auto"
    cached_prompts: int = 8
    cached_answers: bool = False
    int8: bool = True
    operators: bool = True
    cache_dir: Path | None = None


@dataclass(eq=False)
class Call:
    """A request, shared by the event loop and the thread.

    Attributes:
        request: The request.
        queued_at: When it arrived, by `time.perf_counter`.
        events: Its events, for the event loop.
        job: The request's job, while the stepper has it. Owned by the thread.
    """

    request: EngineRequest
    queued_at: float
    events: asyncio.Queue[EngineEvent | ServiceError] = field(default_factory=asyncio.Queue)
    job: Job | None = None


@dataclass(frozen=True)
class Cancellation:
    """Cancel a request. It may have ended already."""

    call: Call


@dataclass(frozen=True)
class Supply:
    """More of a request's features arrived, at a time by `time.perf_counter`. It may have ended already."""

    call: Call
    at: float


# Messages to the thread; None ends it.
Inbox = queue.SimpleQueue[Call | Supply | Cancellation | None]


class Worker:
    """The state of the thread.

    Args:
        config: What to load.
        inbox: Requests, their features and cancellations, and None for the end.
        loop: The event loop that receives the events.
    """

    def __init__(self, config: BatchConfig, inbox: Inbox, loop: asyncio.AbstractEventLoop) -> None:
        self._inbox = inbox
        self._loop = loop
        self._pending: list[tuple[Call, EngineEvent | ServiceError]] = []
        bundle = config.bundle
        runner, model = load(config)
        budget = _budget(config, runner)
        self.max_tokens = min(config.context_length, budget)
        cache = KvCache(
            layers=bundle.text.num_hidden_layers,
            slots=config.slots + config.cached_prompts,
            heads=bundle.text.num_key_value_heads,
            length=self.max_tokens,
            width=runner.cache_width,
            dtype=runner.cache_dtype,
        )
        runner.use(cache.buffers)
        pace = Pace(
            _speed(config, runner, model, self.max_tokens),
            chunk_tokens=config.chunk_tokens,
            stall=config.stall,
            together=model.together,
            parts=model.parts,
        )
        # Otherwise the first long prompt would take 1.5 times as long, because it allocates memory that later ones
        # reuse.
        pace.begin(0, 1)
        check_logits(model, runner.shape, max(min(pace.room(), self.max_tokens - 1), 1))
        for slot in range(config.slots):
            cache.release(slot)  # written by calibration and warm-up
        slots = Slots(
            cache,
            slots=config.slots + config.cached_prompts,
            running=config.slots,
            budget=budget,
            caching=config.cached_prompts > 0,
            parking=config.parking_bytes // cache.bytes_per_token,
        )
        self._shape = runner.shape
        scheduler = Scheduler[Job](slots, read_ahead=config.read_ahead == "on")
        self._stepper = Stepper(model, scheduler, pace, self._shape, keep_answers=config.cached_answers)
        self._cores = SpareCores() if config.read_ahead == "auto" else None
        log.info(
            "engine ready",
            threads=config.threads,
            slots=config.slots,
            kv_cache_tokens=budget,
            kv_cache_dtype=runner.cache_dtype.name,
            own_operators=_operators(config) is not None,
        )

    def run(self) -> None:
        """Run steps until None arrives."""
        while self._take_in():
            self._look()
            self._stepper.decode()
            self._flush()  # tokens are sent before the further prefill
            self._stepper.prefill()
            self._flush()

    def _take_in(self) -> bool:
        """Handle the messages in the inbox; wait for one if there is nothing to do.

        Returns:
            Whether to continue.
        """
        while True:
            # Idle cores cause no message, so they are checked at intervals.
            patience = LOOK_SECONDS if self._cores is not None and self._stepper.expecting else None
            try:
                message = self._inbox.get(self._stepper.idle and not self._pending, patience)
            except queue.Empty:
                return True
            if message is None:
                return False
            if isinstance(message, Cancellation):
                self._cancel(message.call)
            elif isinstance(message, Supply):
                self._supply(message)
            else:
                self._accept(message)
            del message  # frees its features while the thread waits for the next message

    def _look(self) -> None:
        """Update `read_ahead` while some prompts wait for features."""
        if self._cores is None:
            return
        if self._stepper.expecting:
            self._stepper.read_ahead(self._cores.look(), time.perf_counter())
        else:
            self._cores.forget()

    def _accept(self, call: Call) -> None:
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

    def _cancel(self, call: Call) -> None:
        job, call.job = call.job, None
        if job is not None:
            self._stepper.cancel(job)

    def _on_event(self, call: Call, event: EngineEvent | ServiceError) -> None:
        self._pending.append((call, event))
        if isinstance(event, EngineFinished | ServiceError):
            call.job = None

    def _flush(self) -> None:
        """Send the events of half a step to the event loop at once."""
        if self._pending:
            self._loop.call_soon_threadsafe(functools.partial(_deliver, self._pending))
            self._pending = []


def _deliver(pending: list[tuple[Call, EngineEvent | ServiceError]]) -> None:
    for call, event in pending:
        call.events.put_nowait(event)


def load(config: BatchConfig) -> tuple[Runner, Phases]:
    """The runner with the bundle's own graph, and with its INT8 graph for prefill if it has one and `int8` is set."""
    bundle = config.bundle
    own = bundle.decoder.precision
    runner = Runner(
        bundle.decoder_dir / "embedding.onnx",
        threads=config.threads,
        layers=bundle.text.num_hidden_layers,
        head_size=bundle.text.head_dim,
        operators=_operators(config),
        kv_dtype=config.kv_dtype,
    )
    prefills = "int8" if config.int8 and "int8" in bundle.decoder.graphs else own
    for name in dict.fromkeys((own, prefills)):
        started, before = time.perf_counter(), _own_bytes()
        runner.load(name, bundle.graph_path(name), layers_at_once=LAYERS_AT_ONCE if name != own else None)
        log.info(
            "graph loaded",
            precision=name,
            seconds=round(time.perf_counter() - started, 2),
            adds_mib=(_own_bytes() - before) >> 20,
        )
    return runner, Phases(runner, decode=own, prefill=prefills)


def _operators(config: BatchConfig) -> Path | None:
    """Path of our own operators, if they are enabled and supported here."""
    return operators.library() if config.operators else None


def _budget(config: BatchConfig, runner: Runner) -> int:
    """Most tokens in the KV cache, in whole pages."""
    text = config.bundle.text
    token = token_bytes(text.num_hidden_layers, text.num_key_value_heads, runner.cache_width, runner.cache_dtype)
    step = granule(runner.cache_width, runner.cache_dtype)
    whole = -(-config.context_length // step) * step * token
    size = config.kv_bytes or min(max(_USUAL_KV_BYTES, whole), usable_memory() // 2)
    budget = size // token // step * step
    if budget < min(_SHORTEST_CONTEXT, config.context_length):
        raise ValueError(f"kv_cache_bytes has room for {budget} tokens, of {token} bytes each")
    if budget < config.context_length:
        log.warning("kv_cache_bytes shortens the context", tokens=budget, wanted=config.context_length)
    return budget


def _own_bytes() -> int:
    """Memory of this process in bytes, without pages of files, which the kernel can reclaim; 0 if it is not known."""
    try:
        _, resident, of_files, *_ = map(int, Path("/proc/self/statm").read_text().split())
        return (resident - of_files) * mmap.PAGESIZE
    except OSError:
        return 0


def _speed(config: BatchConfig, runner: Runner, model: Phases, room: int) -> Speed:
    """The stored speed of these graphs on this machine; measured now if there is none."""
    bundle = config.bundle
    folders = [bundle.root / "measured", *([config.cache_dir] if config.cache_dir is not None else [])]
    of = {
        "graphs": {name: bundle.files[bundle.decoder.graphs[name]].sha256 for name in runner.graphs},
        "threads": config.threads,
        "onnxruntime": onnxruntime.__version__,
        "operators": hashlib.sha256(library.read_bytes()).hexdigest() if (library := _operators(config)) else None,
        "kv_dtype": runner.cache_dtype.name,
        "widths": widths(config.slots),
        "chunks": [size for size in CHUNKS if size <= room],
    }
    kept = Measurements(folders, of)
    speed = kept.load()
    if speed is None:
        speed, quiet = calibrate(model, runner.shape, config.slots, room, Disturbance())
        if quiet:
            kept.keep(speed)
        else:
            log.info("measurements are not stored: other processes used the cores")
    return speed
