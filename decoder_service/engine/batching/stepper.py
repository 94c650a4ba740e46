"""The engine's steps: each decodes one token per running request and prefills a part of the waiting prompts.

Which graph computes what depends on the phase alone, so the answer to a request does not depend on the other requests.

It has no threads, and reads the clock only to measure: its owner calls it, and each job's `emit` receives its events.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import structlog
from numpy.typing import NDArray

from decoder_service.engine.batching.pace import Pace
from decoder_service.engine.batching.prefix import Content
from decoder_service.engine.batching.scheduler import Chunk, Scheduler, Task
from decoder_service.engine.batching.slots import Slot
from decoder_service.engine.interface import (
    ConstraintError,
    EngineEvent,
    EngineFinished,
    EngineRequest,
    FinishReason,
    Limit,
    Prefilled,
    Prefilling,
    TokenDrawn,
)
from decoder_service.engine.media import check_spans, prefillable, rows_before
from decoder_service.engine.model import Model, Piece, Shape, Step
from decoder_service.engine.sampler import NotDrawn, Sampler, draw
from decoder_service.engine.supervisor import constraint_failed, failed, not_finite, out_of_memory
from decoder_service.metrics import PARKED, PARKS
from serving.errors import ServiceError
from serving.logs import trace

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
        positions: Rows of the prompt's tokens, and of the one after them, in the graph's table of rotations,
            int64 [axes, n + 1].
        answer: The tokens of the answer, sampled or forced.
        runs: Where in the answer several known tokens are computed together: their number, by the first of them.
    """

    request: EngineRequest = field(kw_only=True)
    sampler: Sampler = field(kw_only=True)
    emit: Emit = field(kw_only=True)
    queued_at: float = field(kw_only=True)
    since: float = field(kw_only=True)
    positions: NDArray[np.int64] = field(kw_only=True)
    waited: float = 0.0
    started_at: float | None = None
    queue_seconds: float = 0.0
    answer: list[int] = field(default_factory=list)
    runs: dict[int, int] = field(default_factory=dict)

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
        adapted, long = shape.has_adapter and len(request.media) > 0, shape.is_long(ids.size)
        return cls(
            prompt=Content(ids, request.media, request.cache_scope, adapted, long),
            positions=shape.rotations(request.positions, long=long),
            available=prefillable(ids.size, request.media, request.features.available),
            need=ids.size + request.max_new_tokens,
            request=request,
            sampler=Sampler(request.sampling, ids, request.constraint, stop_token_ids=request.stop_token_ids),
            emit=emit,
            queued_at=queued_at,
            since=queued_at,
        )

    @property
    def computed(self) -> int:
        """Computed tokens of its answer."""
        return self.place.length - self.request.token_ids.size

    @property
    def position(self) -> int:
        """The row of its next token in the table of rotations."""
        return int(self.positions[0, -1]) + self.place.length - len(self.prompt)

    def outgrows(self, shape: Shape) -> bool:
        """Whether its next run makes it too long for the frequencies that its tokens have."""
        return not self.prompt.long and shape.is_long(self.place.length + self.ahead)

    def lengthen(self, shape: Shape) -> None:
        """Make its prompt of all its known tokens up to those of its next run, with the long frequencies."""
        known = self.answer[: self.computed + self.ahead]
        after = self.request.positions[:, -1:] + np.arange(len(known) + 1)
        self.prompt = replace(self.prompt.followed_by(known), long=True)
        self.positions = shape.rotations(np.concatenate([self.request.positions[:, :-1], after], axis=1), long=True)
        self.available = len(self.prompt)

    @property
    def ahead(self) -> int:
        """Tokens of the answer that are computed in its next run.

        It depends on the answer alone: a token that is computed with others is rounded otherwise than alone, and a
        request that was parked computes its tokens again as before.
        """
        return self.runs.get(self.computed, 1)

    @property
    def replaying(self) -> bool:
        """Whether the next token is known: it was forced, or sampled before the request was parked."""
        return self.computed < len(self.answer)

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
        decoding: Jobs in the slots from the first to the last that computes a single token, in their order.
        step: The model's input for them; None if none of them computes a single token.
        chunk: The prefill chunk in the same run, if any.
        known: The job whose known tokens are computed in the same run, if any; then there is no chunk.
        piece: The model's input for the chunk, or for the known tokens.
    """

    decoding: list[Job]
    step: Step | None
    chunk: Chunk[Job] | None = None
    known: Job | None = None
    piece: Piece | None = None

    @property
    def size(self) -> int:
        """Tokens of the chunk."""
        return self.chunk.size if self.chunk is not None else 0

    @property
    def jobs(self) -> list[Job]:
        """All jobs of the batch."""
        beside = [self.known, self.chunk.task if self.chunk is not None else None]
        return [*self.decoding, *(job for job in beside if job is not None)]


@dataclass(eq=False)
class _Prefill:
    """A chunk in progress, prefilled part by part.

    Attributes:
        chunk: The chunk.
        slot: Its slot when it was started.
        index: The index of that slot.
        parts: Computes one part for each `next`.
        seconds: Duration of the parts so far.
    """

    chunk: Chunk[Job]
    slot: Slot
    index: int
    parts: Iterator[NDArray[np.float32] | None]
    seconds: float = 0.0

    @property
    def holds(self) -> bool:
        """Whether it can continue: its request still runs, in the slot to which the first parts were written."""
        slot = self.slot
        return self.chunk.task.slot is slot and (slot.index, slot.length) == (self.index, self.chunk.start)


MOST_KNOWN = 8
"""Most known tokens of an answer in one run: the other requests wait for it."""

_NO_LOGITS = np.empty((0, 0), np.float32)


class Stepper:
    """Runs the batches that the scheduler selects.

    Args:
        model: Runs the graphs.
        scheduler: Selects the jobs.
        pace: Selects the chunk sizes.
        shape: Shape of the model.
        keep_answers: Whether the prefix cache keeps answers as well, and not only prompts.
    """

    def __init__(
        self, model: Model, scheduler: Scheduler[Job], pace: Pace, shape: Shape, *, keep_answers: bool = False
    ) -> None:
        self._model = model
        self._scheduler = scheduler
        self._pace = pace
        self._shape = shape
        self._keep_answers = keep_answers
        self._in_progress: _Prefill | None = None
        PARKED.set(0)

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
        """Cancel a request. The computed tokens of its prompt stay in the prefix cache."""
        self._scheduler.remove(job, self._content(job))
        PARKED.set(len(self._scheduler.parked))

    def decode(self) -> None:
        """The first half of a step: decode one token per running request, with a chunk in the same run if possible."""
        self._make_room()
        self._lengthen()
        decoding = len(self._scheduler.decoding)
        self._pace.begin(decoding, self._scheduler.prefillable)
        if decoding:
            together = self._model.together and self._scheduler.next_known() is None
            self._step(self._scheduler.next_chunk(self._pace.room(decoding)) if together else None)

    def _make_room(self) -> None:
        """Reserve memory for the next token of each answer. An answer that is alone and has none ends."""
        before = self._scheduler.parked
        for job in self._scheduler.make_room():
            self._end(job, FinishReason.LENGTH, Limit.KV_CACHE)
        parked = self._scheduler.parked
        for job in parked:
            if job not in before and job.parked is not None:
                PARKS.labels("copied" if job.parked.saved is not None else "dropped").inc()
        PARKED.set(len(parked))

    def _lengthen(self) -> None:
        """Prefill again what becomes too long for the short frequencies of LongRoPE, as transformers' `generate` does.

        Keys have been rotated by the short ones, and the logits of a longer sequence are those of the long ones. Memory
        for the next run has been reserved.
        """
        for job in [job for job in self._scheduler.decoding if job.outgrows(self._shape)]:
            job.lengthen(self._shape)
            self._scheduler.restart(job)

    def prefill(self) -> None:
        """The second half: prefill as much as the step has time for."""
        while (prefill := self._next_prefill()) is not None:
            self._advance(prefill)

    def _step(self, chunk: Chunk[Job] | None) -> None:
        batch = self._schedule(chunk)
        # Measured without moving slots: that is rare, and not a property of the graph.
        started = time.perf_counter()
        try:
            logits = self._model.decode(batch.step, batch.piece)
            rows = enumerate(batch.decoding) if batch.step is not None else ()
            sampling = {job: row for row, job in rows if job.ahead == 1}
            if batch.known is not None:
                sampling[batch.known] = len(logits) - 1
            self._scheduler.decoded(list(sampling))
            if batch.chunk is not None:
                batch.chunk.task.begin(started)
                sampling |= dict.fromkeys(self._prefilled(batch.chunk), len(logits) - 1)
            self._sample(sampling, logits)
            if batch.known is None:  # else it is no measure of a decode step
                self._pace.took(len(batch.decoding), batch.size, time.perf_counter() - started)
        except Exception as error:  # noqa: BLE001  # the failing job is unknown, so all jobs of the batch fail
            self._fail_all(batch.jobs, error)

    def _next_prefill(self) -> _Prefill | None:
        """The chunk in progress, or else the next one; None if there is none, or no time left."""
        if self._in_progress is not None and self._in_progress.holds:
            return None if self._pace.over else self._in_progress
        self._in_progress = None
        while (chunk := self._scheduler.next_chunk(self._pace.room())) is not None:
            if (piece := self._piece(chunk)) is not None:
                chunk.task.begin(time.perf_counter())
                parts = self._model.prefill(piece, ends=chunk.completes)
                self._in_progress = _Prefill(chunk, chunk.task.place, chunk.task.place.index, parts)
                break
        return self._in_progress

    def _advance(self, prefill: _Prefill) -> None:
        """Compute a part of a chunk; after the last part, record the chunk and sample."""
        started = time.perf_counter()
        chunk = prefill.chunk
        try:
            logits = next(prefill.parts, _NO_LOGITS)
            seconds = time.perf_counter() - started
            self._pace.spent(seconds)
            prefill.seconds += seconds
            if logits is None:
                return
            self._in_progress = None
            self._pace.took(0, chunk.size, prefill.seconds)
            self._sample(dict.fromkeys(self._prefilled(chunk), 0), logits)
        except Exception as error:  # noqa: BLE001  # a failure of one request must not affect others
            self._in_progress = None
            self._fail_all([chunk.task], error)

    def _schedule(self, chunk: Chunk[Job] | None) -> _Batch:
        """The batch of the next run. A chunk with invalid features is left out, and its request fails."""
        first_slot, decoding = self._scheduler.decode_order()
        known = self._scheduler.next_known()
        single = [row for row, job in enumerate(decoding) if job.ahead == 1]
        first, stop = (single[0], single[-1] + 1) if single else (0, 0)
        decoding = decoding[first:stop]
        batch = _Batch(decoding, _next_tokens(first_slot + first, decoding, known) if single else None, known=known)
        if batch.known is not None:
            batch.piece = self._known_tokens(batch.known)
        elif chunk is not None and (piece := self._piece(chunk)) is not None:
            batch.piece, batch.chunk = piece, chunk
        return batch

    def _known_tokens(self, job: Job) -> Piece:
        """The model's input for several known tokens of an answer."""
        computed, count, position = job.computed, job.ahead, job.position
        return Piece(
            slot=job.place.index,
            start=job.place.length,
            token_ids=np.array(job.answer[computed : computed + count], np.int32),
            features=np.empty((0, self._shape.feature_width), np.float32),
            positions=np.tile(np.arange(position, position + count), (self._shape.axes, 1)),
            adapted=job.prompt.adapted,
        )

    def _prefilled(self, chunk: Chunk[Job]) -> list[Job]:
        """Record that a chunk has been computed.

        Returns:
            Its job if the prompt is complete, so that its first token can be sampled.
        """
        job = chunk.task
        self._scheduler.prefilled(chunk)
        if chunk.completes:
            if not job.answer:  # else the prompt is computed again, after the request was parked
                job.emit(job.prefilled(time.perf_counter()))
            return [job]
        job.since = time.perf_counter()
        if job.request.report_progress and not job.answer:
            job.emit(Prefilling(chunk.stop, len(job.prompt)))
        return []

    def _sample(self, rows: Mapping[Job, int], logits: NDArray[np.float32]) -> None:
        """Sample a token for each job from its row of logits, unless the token is known."""
        sampling = [job for job in rows if not job.replaying]
        if not sampling:
            return
        wanted = [rows[job] for job in sampling]
        logits = logits[wanted] if wanted != list(range(len(logits))) else logits
        for job, drawn in zip(sampling, draw([job.sampler for job in sampling], logits), strict=True):
            if isinstance(drawn, NotDrawn):
                self._fail(job, drawn.why, _error_of(drawn))
                if not drawn.finite:
                    self._scheduler.distrust(job)
            else:
                self._append(job, drawn)
        # After all of them, since the constraints advance meanwhile.
        for job in sampling:
            if job.slot is not None:
                self._force(job)

    def _force(self, job: Job) -> None:
        """Append the tokens that a constraint leaves no choice for. They are computed together with the one before."""
        first = len(job.answer) - 1
        try:
            for token in job.sampler.forced():
                self._append(job, TokenDrawn(token))
                if job.slot is None:  # that was the end
                    return
        except ConstraintError as error:
            self._fail(job, "the constraint can go no further", constraint_failed(str(error)))
            return
        except Exception:  # noqa: BLE001  # a failure of one request must not affect others
            self._fail(job, trace())
            return
        job.runs.update(_runs(first, len(job.answer) - first))

    def _piece(self, chunk: Chunk[Job]) -> Piece | None:
        """The model's input for a chunk; None if its features are invalid, and its request has failed."""
        self._pace.take(chunk.size)
        job = chunk.task
        # ONNX Runtime's attention rounds a single token differently from several. So the token before it is computed
        # again with it, and the borders of chunks change nothing.
        start = chunk.start - (chunk.size == 1 and chunk.start > 0)
        try:
            first, last = (rows_before(token, job.request.media) for token in (start, chunk.stop))
            return Piece(
                slot=job.place.index,
                start=start,
                token_ids=job.prompt.token_ids[start : chunk.stop],
                features=job.request.features.rows(first, last, self._shape.feature_width),
                positions=job.positions[:, start : chunk.stop],
                adapted=job.prompt.adapted,
                generated=max(0, chunk.stop - max(start, job.request.token_ids.size)),
            )
        except Exception:  # noqa: BLE001  # a failure of one request must not affect others
            self._fail(job, trace())
            return None

    def _append(self, job: Job, drawn: TokenDrawn) -> None:
        job.answer.append(drawn.token_id)
        request = job.request
        job.emit(drawn)
        if drawn.token_id in request.stop_token_ids:
            self._end(job, FinishReason.STOP)
        elif len(job.answer) == request.max_new_tokens:
            self._end(job, FinishReason.LENGTH)

    def _end(self, job: Job, reason: FinishReason, limit: Limit | None = None) -> None:
        self._scheduler.remove(job, self._content(job))
        job.emit(EngineFinished(reason, limit))

    def _content(self, job: Job) -> Content | None:
        """The computed tokens of a request that the prefix cache may keep: those of the prompt.

        Decode uses another graph than prefill, or at least rounds differently. Whether a cached answer is still there
        depends on the load, and the answer of the next turn must not.
        """
        if job.slot is None:
            return None
        if not self._keep_answers:
            return job.prompt
        # The token sampled last is not computed. A prompt that was lengthened has the first of the answer already.
        return job.prompt.followed_by(job.answer[len(job.prompt) - job.request.token_ids.size : max(job.computed, 0)])

    def _fail_all(self, jobs: Sequence[Job], error: Exception) -> None:
        """Let jobs fail by an exception."""
        why = trace(error)
        for job in jobs:
            if job.slot is not None:  # else it has finished
                self._fail(job, why, out_of_memory() if isinstance(error, MemoryError) else None)

    def _fail(self, job: Job, why: str, error: ServiceError | None = None) -> None:
        log.error("request failed in the engine", request_id=job.request.request_id, traceback=why)
        self._scheduler.remove(job, None)
        job.emit(error or failed())


def _error_of(drawn: NotDrawn) -> ServiceError | None:
    """The error for the client, if it is a particular one."""
    if not drawn.finite:
        return not_finite()
    return constraint_failed(drawn.constraint) if drawn.constraint else None


def _next_tokens(first_slot: int, jobs: Sequence[Job], known: Job | None) -> Step:
    """The model's input for one decode step of jobs in adjacent slots, from `first_slot` on.

    Jobs with several known tokens may be among them, since moving slots costs more: what is computed for them does not
    count. For `known`, whose tokens are computed in the same run, it is written behind these.
    """
    computed = [job.computed for job in jobs]
    return Step(
        first_slot=first_slot,
        lengths=np.array([job.place.length + (job.ahead if job is known else 0) for job in jobs], np.int64),
        token_ids=np.array([job.answer[at] for job, at in zip(jobs, computed, strict=True)], np.int32),
        positions=np.array([job.position for job in jobs], np.int64),
        adapted=np.array([job.prompt.adapted for job in jobs], np.bool_),
    )


def _runs(first: int, count: int) -> Iterator[tuple[int, int]]:
    """Divide `count` tokens of an answer into runs. A token that is left over is computed alone."""
    while count > 1:
        size = min(count, MOST_KNOWN)
        yield first, size
        first, count = first + size, count - size
