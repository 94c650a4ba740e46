"""The engine's steps: each decodes one token per running request and prefills a part of the waiting prompts.

It has no threads. Its owner calls the steps, and the results go to each job's `emit`.
"""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import structlog
from numpy.typing import NDArray

from decoder_service.engine.batching.pace import Pace
from decoder_service.engine.batching.prefix import Content
from decoder_service.engine.batching.scheduler import Chunk, Scheduler, Task
from decoder_service.engine.interface import (
    EngineEvent,
    EngineFinished,
    EngineRequest,
    FinishReason,
    Prefilled,
    Prefilling,
    TokenDrawn,
)
from decoder_service.engine.media import check_spans, prefillable, rows_before
from decoder_service.engine.model import Model, Piece, Shape, Step
from decoder_service.engine.sampler import NotDrawn, Sampler, draw
from decoder_service.engine.supervisor import failed
from serving.errors import ServiceError

log = structlog.get_logger()


Emit = Callable[[EngineEvent | ServiceError], None]


@dataclass(eq=False)
class Job(Task):
    """A request in the engine.

    Attributes:
        request: The request.
        sampler: Samples its tokens.
        emit: Called with every event. A job that has finished or failed has been removed from the engine by then.
        queued_at: When it arrived, by `time.perf_counter`.
        since: When it arrived, or when its last chunk was prefilled.
        waited: Seconds without prefill because features were missing; reset when its prefill starts.
        started_at: When its prefill started.
        queue_seconds: Time in the queue, without waiting for features.
        answer: The sampled tokens.
    """

    request: EngineRequest = field(kw_only=True)
    sampler: Sampler = field(kw_only=True)
    emit: Emit = field(kw_only=True)
    queued_at: float = field(kw_only=True)
    since: float = field(kw_only=True)
    waited: float = 0.0
    started_at: float | None = None
    queue_seconds: float = 0.0
    answer: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, request: EngineRequest, shape: Shape, queued_at: float, emit: Emit) -> Job:
        """Make a job of a request.

        Raises:
            ValueError: The fields of the request are inconsistent with each other or with the model.
        """
        ids, vocabulary = request.token_ids, shape.vocabulary
        if ids.size == 0 or not ((ids >= 0) & (ids < vocabulary)).all():
            raise ValueError("the prompt is empty, or has a token outside the model's vocabulary")
        if not all(0 <= token < vocabulary for token in request.sampling.logit_bias):
            raise ValueError("logit_bias names a token outside the model's vocabulary")
        if request.positions.shape != (shape.axes, ids.size + 1):
            raise ValueError(f"{ids.size} tokens have positions of shape {request.positions.shape}")
        check_spans(ids.size, request.media, request.features.count)
        return cls(
            prompt=Content(ids, request.media),
            available=prefillable(ids.size, request.media, request.features.available),
            need=ids.size + request.max_new_tokens,
            request=request,
            sampler=Sampler(request.sampling, ids, request.constraint),
            emit=emit,
            queued_at=queued_at,
            since=queued_at,
        )

    def begin(self, now: float) -> None:
        """Record the start of its prefill."""
        if self.started_at is None:
            self.started_at = now
            self.queue_seconds = now - self.queued_at - self.waited
            self.waited = 0.0

    def prefilled(self, now: float) -> Prefilled:
        """The event for the end of its prefill."""
        prefill_seconds = now - (self.started_at or now) - self.waited
        return Prefilled(self.queue_seconds, prefill_seconds, self.cached or 0)


@dataclass(eq=False)
class _Batch:
    """The work of one run.

    Attributes:
        decoding: Jobs that decode, in the order of their slots.
        step: The model's input for them; None if there are none.
        chunk: The prefill chunk, if any.
        piece: The model's input for the chunk.
    """

    decoding: list[Job]
    step: Step | None
    chunk: Chunk[Job] | None = None
    piece: Piece | None = None

    @property
    def size(self) -> int:
        """Tokens of the chunk."""
        return self.chunk.stop - self.chunk.start if self.chunk is not None else 0

    @property
    def jobs(self) -> list[Job]:
        """All jobs of the batch."""
        return [*self.decoding, *([self.chunk.task] if self.chunk is not None else [])]


class Stepper:
    """Runs the batches that the scheduler selects.

    Args:
        model: Runs the graphs.
        scheduler: Selects the jobs.
        pace: Selects the chunk sizes and the graph.
        shape: Shape of the model.
    """

    def __init__(self, model: Model, scheduler: Scheduler[Job], pace: Pace, shape: Shape) -> None:
        self._model = model
        self._scheduler = scheduler
        self._pace = pace
        self._shape = shape
        self._room = 0  # prompt tokens that this step may still prefill

    @property
    def idle(self) -> bool:
        """Whether a step would do nothing."""
        return self._scheduler.idle

    def add(self, job: Job) -> None:
        """Add a new request."""
        self._scheduler.add(job)

    def supply(self, job: Job, at: float) -> None:
        """Record that more of a request's features arrived, at a time by `time.perf_counter`."""
        with self._noting_waits([job], at):
            job.available = prefillable(len(job.prompt), job.prompt.media, job.request.features.available)

    @property
    def expecting(self) -> bool:
        """Whether any job waits for features."""
        return any(not job.whole for job in self._scheduler.tasks)

    def read_ahead(self, on: bool, at: float) -> None:
        """Turn the prefill of incomplete prompts on or off, at a time by `time.perf_counter`."""
        if on != self._scheduler.read_ahead:
            with self._noting_waits(self._scheduler.tasks, at):
                self._scheduler.read_ahead = on

    @contextlib.contextmanager
    def _noting_waits(self, jobs: Sequence[Job], at: float) -> Iterator[None]:
        """Add up the waiting time of jobs that can be prefilled after the block and could not before."""
        stalled = [job for job in jobs if not self._scheduler.able(job)]
        yield
        for job in stalled:
            if self._scheduler.able(job):
                job.waited += max(at - job.since, 0.0)

    def cancel(self, job: Job) -> None:
        """Cancel a request. Its computed tokens stay in the prefix cache."""
        self._scheduler.remove(job, _content(job))

    def decode(self) -> None:
        """The first half of a step: decode one token per running request and, in the same run, prefill one chunk."""
        decoding = len(self._scheduler.decoding)
        self._room = self._pace.room(decoding, self._scheduler.prefillable)
        if decoding:
            self._step(self._scheduler.next_chunk(self._room), decode=True)

    def prefill(self) -> None:
        """The second half: prefill further chunks as far as the step has room."""
        while (chunk := self._scheduler.next_chunk(self._room)) is not None:
            self._step(chunk, decode=False)

    def _step(self, chunk: Chunk[Job] | None, *, decode: bool) -> None:
        batch = self._schedule(chunk, decode=decode)
        if batch.step is None and batch.piece is None:
            return
        # Measured without moving slots: that is rare, and not a property of the graph.
        started = time.perf_counter()
        try:
            graph = self._pace.graph(len(batch.decoding), batch.size)
            logits = self._model.run(graph, step=batch.step, piece=batch.piece)
            self._postprocess(batch, logits, started)
            self._pace.took(graph, len(batch.decoding), batch.size, time.perf_counter() - started)
        except Exception:  # noqa: BLE001  # the failing job is unknown, so all jobs of the batch fail
            for job in batch.jobs:
                if job.slot is not None:  # else it has finished
                    self._fail(job, traceback.format_exc())

    def _schedule(self, chunk: Chunk[Job] | None, *, decode: bool) -> _Batch:
        """The batch of the next run. A chunk with invalid features is left out, and its request fails."""
        first_slot, decoding = self._scheduler.decode_order() if decode else (0, [])
        batch = _Batch(decoding, _next_tokens(first_slot, decoding) if decoding else None)
        if chunk is not None:
            self._room -= chunk.stop - chunk.start
            try:
                batch.piece, batch.chunk = self._piece(chunk), chunk
            except Exception:  # noqa: BLE001  # a failure of one request must not affect others
                self._fail(chunk.task, traceback.format_exc())
        return batch

    def _postprocess(self, batch: _Batch, logits: NDArray[np.float32], started: float) -> None:
        """Record the computed tokens, and sample the next ones."""
        self._scheduler.decoded(batch.decoding)
        sampling = list(batch.decoding)
        if batch.chunk is not None:
            job = batch.chunk.task
            job.begin(started)
            self._scheduler.prefilled(batch.chunk)
            if batch.chunk.completes:
                job.emit(job.prefilled(time.perf_counter()))
                sampling.append(job)
            else:
                job.since = time.perf_counter()
                if job.request.report_progress:
                    job.emit(Prefilling(batch.chunk.stop, len(job.prompt)))
        for job, drawn in zip(sampling, draw([job.sampler for job in sampling], logits[: len(sampling)]), strict=True):
            if isinstance(drawn, NotDrawn):
                self._fail(job, drawn.why)
            else:
                self._append(job, drawn)

    def _piece(self, chunk: Chunk[Job]) -> Piece:
        job = chunk.task
        ids = job.request.token_ids
        first, last = (rows_before(token, job.request.media) for token in (chunk.start, chunk.stop))
        return Piece(
            slot=job.place.index,
            start=chunk.start,
            token_ids=ids[chunk.start : chunk.stop],
            features=job.request.features.rows(first, last, self._shape.feature_width),
            positions=job.request.positions[:, chunk.start : chunk.stop],
        )

    def _append(self, job: Job, drawn: TokenDrawn) -> None:
        job.answer.append(drawn.token_id)
        request = job.request
        stopped = drawn.token_id in request.stop_token_ids
        ended = stopped or len(job.answer) == request.max_new_tokens
        if ended:
            self._scheduler.remove(job, _content(job))
        job.emit(drawn)
        if ended:
            job.emit(EngineFinished(FinishReason.STOP if stopped else FinishReason.LENGTH))

    def _fail(self, job: Job, why: str) -> None:
        log.error("request failed in the engine", request_id=job.request.request_id, traceback=why)
        self._scheduler.remove(job, None)
        job.emit(failed())


def _next_tokens(first_slot: int, jobs: Sequence[Job]) -> Step:
    """The model's input for one decode step of jobs in adjacent slots, from `first_slot` on."""
    return Step(
        first_slot=first_slot,
        lengths=np.array([job.place.length for job in jobs], np.int64),
        token_ids=np.array([job.answer[-1] for job in jobs], np.int32),
        positions=np.array([job.request.positions[0, -1] + len(job.answer) - 1 for job in jobs], np.int64),
    )


def _content(job: Job) -> Content | None:
    """The computed tokens of a request: the token sampled last is not among them."""
    if job.slot is None:
        return None
    return job.prompt.followed_by(job.answer[: max(job.slot.length - len(job.prompt), 0)])
