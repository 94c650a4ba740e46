"""The engine's work, one step after another: a token for every answer, and a piece of the prompts that wait.

Prompts and answers are computed by a graph each, or by one and the same, whatever else is here: nothing that a request
is given depends on those beside it.

No threads and no clocks but for measuring: whoever owns it calls it, and each job's `emit` hears what came of it.
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
from decoder_service.engine.media import check_spans, readable, rows_before
from decoder_service.engine.model import Model, Piece, Shape, Step
from decoder_service.engine.sampler import NotDrawn, Sampler, draw
from decoder_service.engine.supervisor import failed
from serving.errors import ServiceError

log = structlog.get_logger()


Emit = Callable[[EngineEvent | ServiceError], None]


@dataclass(eq=False)
class Job(Task):
    """A request on its way through the engine.

    Attributes:
        request: What was asked.
        sampler: Draws its tokens.
        emit: Told of every event. A job that has finished or failed is gone from the engine by then.
        queued_at: When it came, by `time.perf_counter`.
        since: When it came, or its last chunk was read.
        waited: Seconds for which nothing could be read for want of features, until its prompt is begun, and then anew.
        started_at: When its prompt was begun.
        queue_seconds: How long it waited for that, for the engine alone.
        answer: The tokens drawn.
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
        """Lay a request out.

        Raises:
            ValueError: Its parts do not agree with each other or with the model.
        """
        ids, vocabulary = request.token_ids, shape.vocabulary
        if ids.size == 0 or not ((ids >= 0) & (ids < vocabulary)).all():
            raise ValueError("the prompt is empty, or has a token that the model does not know")
        if not all(0 <= token < vocabulary for token in request.sampling.logit_bias):
            raise ValueError("logit_bias names a token that the model does not know")
        if request.positions.shape != (shape.axes, ids.size + 1):
            raise ValueError(f"{ids.size} tokens have positions of shape {request.positions.shape}")
        check_spans(ids.size, request.media, request.features.count)
        return cls(
            prompt=Content(ids, request.media),
            available=readable(ids.size, request.media, request.features.available),
            need=ids.size + request.max_new_tokens,
            request=request,
            sampler=Sampler(request.sampling, ids),
            emit=emit,
            queued_at=queued_at,
            since=queued_at,
        )

    def begin(self, now: float) -> None:
        """Its first chunk is being read."""
        if self.started_at is None:
            self.started_at = now
            self.queue_seconds = now - self.queued_at - self.waited
            self.waited = 0.0

    def prefilled(self, now: float) -> Prefilled:
        """What to tell when the prompt has been read."""
        reading = now - (self.started_at or now) - self.waited
        return Prefilled(self.queue_seconds, reading, self.cached or 0)


@dataclass(eq=False)
class _Batch:
    """What is computed in one run.

    Attributes:
        decoding: Those of whom a token is computed, in the order of their slots.
        step: These tokens.
        chunk: The piece of a prompt beside them, if any.
        piece: The same for the model.
    """

    decoding: list[Job]
    step: Step
    chunk: Chunk[Job] | None = None
    piece: Piece | None = None

    @property
    def size(self) -> int:
        """Tokens of the chunk."""
        return self.chunk.size if self.chunk is not None else 0

    @property
    def jobs(self) -> list[Job]:
        """All that are in it."""
        return [*self.decoding, *([self.chunk.task] if self.chunk is not None else [])]


@dataclass(eq=False)
class _Reading:
    """A chunk that is being read by itself, a part at a time.

    Attributes:
        chunk: Which.
        row: Where its request lay when it was begun.
        parts: Computes a part with each value that is asked for.
        seconds: What its parts took so far.
    """

    chunk: Chunk[Job]
    row: int
    parts: Iterator[NDArray[np.float32] | None]
    seconds: float = 0.0

    @property
    def holds(self) -> bool:
        """Whether it can be gone on with: its request is there, and still lies where the first parts were written."""
        slot = self.chunk.task.slot
        return slot is not None and (slot.row, slot.length) == (self.row, self.chunk.start)


_NO_LOGITS = np.empty((0, 0), np.float32)


class Stepper:
    """Runs what the scheduler says.

    Args:
        model: What computes.
        scheduler: Who is next.
        pace: How much of it.
        shape: Of the model.
        keep_answers: Whether a prompt may go on from the keys and values of an earlier answer, too.
    """

    def __init__(
        self, model: Model, scheduler: Scheduler[Job], pace: Pace, shape: Shape, *, keep_answers: bool = False
    ) -> None:
        self._model = model
        self._scheduler = scheduler
        self._pace = pace
        self._shape = shape
        self._keep_answers = keep_answers
        self._reading: _Reading | None = None

    @property
    def idle(self) -> bool:
        """Whether a step would do nothing."""
        return self._scheduler.idle

    def add(self, job: Job) -> None:
        """A request comes."""
        self._scheduler.add(job)

    def supply(self, job: Job, at: float) -> None:
        """More of a request's features have come, at a time by `time.perf_counter`."""
        with self._noting_waits([job], at):
            job.available = readable(len(job.prompt), job.prompt.media, job.request.features.available)

    @property
    def expecting(self) -> bool:
        """Whether features are missing of anybody."""
        return any(not job.whole for job in self._scheduler.tasks)

    def read_ahead(self, on: bool, at: float) -> None:
        """Prompts are, or are not, to be read while features of them are missing, from this time on."""
        if on != self._scheduler.read_ahead:
            with self._noting_waits(self._scheduler.tasks, at):
                self._scheduler.read_ahead = on

    @contextlib.contextmanager
    def _noting_waits(self, jobs: Sequence[Job], at: float) -> Iterator[None]:
        """Count the time since a prompt could not be read, for those that can be after the block."""
        stalled = [job for job in jobs if not self._scheduler.able(job)]
        yield
        for job in stalled:
            if self._scheduler.able(job):
                job.waited += max(at - job.since, 0.0)

    def cancel(self, job: Job) -> None:
        """A request is called off. What was computed of it serves those that begin alike."""
        self._scheduler.remove(job, self._content(job))

    def decode(self) -> None:
        """The first half of a step: a token for every answer; and a chunk, where one graph computes both in one run."""
        decoding = len(self._scheduler.decoding)
        self._pace.begin(decoding, self._scheduler.readable)
        if decoding:
            together = self._model.together
            self._step(self._scheduler.next_chunk(self._pace.room(decoding)) if together else None)

    def prefill(self) -> None:
        """The second half: as much more of the prompts as there is time for."""
        while (reading := self._next_read()) is not None:
            self._read(reading)

    def _step(self, chunk: Chunk[Job] | None) -> None:
        batch = self._schedule(chunk)
        # Measured from here: moving slots is rare, and no property of the graph.
        started = time.perf_counter()
        try:
            logits = self._model.decode(batch.step, batch.piece)
            self._scheduler.decoded(batch.decoding)
            drawing = list(batch.decoding)
            if batch.chunk is not None:
                batch.chunk.task.begin(started)
                drawing += self._prefilled(batch.chunk)
            self._draw(drawing, logits)
            self._pace.took(len(batch.decoding), batch.size, time.perf_counter() - started)
        except Exception:  # noqa: BLE001  # whose fault it was cannot be told; the engine goes on without them
            self._fail_all(batch.jobs)

    def _next_read(self) -> _Reading | None:
        """The chunk that is being read, or the next one; None where there is none, or no more time."""
        if self._reading is not None and self._reading.holds:
            return None if self._pace.over else self._reading
        self._reading = None
        while (chunk := self._scheduler.next_chunk(self._pace.room())) is not None:
            if (piece := self._piece(chunk)) is not None:
                chunk.task.begin(time.perf_counter())
                parts = self._model.prefill(piece, ends=chunk.completes)
                self._reading = _Reading(chunk, chunk.task.place.row, parts)
                break
        return self._reading

    def _read(self, reading: _Reading) -> None:
        """A part of a chunk, and with the last one what follows from it."""
        started = time.perf_counter()
        chunk = reading.chunk
        try:
            logits = next(reading.parts, _NO_LOGITS)
            seconds = time.perf_counter() - started
            self._pace.spent(seconds)
            reading.seconds += seconds
            if logits is None:
                return
            self._reading = None
            self._pace.took(0, chunk.size, reading.seconds)
            self._draw(self._prefilled(chunk), logits)
        except Exception:  # noqa: BLE001  # as above
            self._reading = None
            self._fail_all([chunk.task])

    def _schedule(self, chunk: Chunk[Job] | None) -> _Batch:
        """What is computed in one run. A chunk whose features are no good is left out, and its request fails."""
        row, decoding = self._scheduler.decode_order()
        batch = _Batch(decoding, _next_tokens(row, decoding))
        if chunk is not None and (piece := self._piece(chunk)) is not None:
            batch.piece, batch.chunk = piece, chunk
        return batch

    def _prefilled(self, chunk: Chunk[Job]) -> list[Job]:
        """Note that a chunk has been computed.

        Returns:
            Whose first token is to be drawn now.
        """
        job = chunk.task
        self._scheduler.prefilled(chunk)
        if chunk.completes:
            job.emit(job.prefilled(time.perf_counter()))
            return [job]
        job.since = time.perf_counter()
        if job.request.report_progress:
            job.emit(Prefilling(chunk.stop, len(job.prompt)))
        return []

    def _draw(self, jobs: Sequence[Job], logits: NDArray[np.float32]) -> None:
        """A token for each, by a row of logits each."""
        if not jobs:
            return
        for job, drawn in zip(jobs, draw([job.sampler for job in jobs], logits[: len(jobs)]), strict=True):
            if isinstance(drawn, NotDrawn):
                self._fail(job, drawn.why)
            else:
                self._append(job, drawn)

    def _piece(self, chunk: Chunk[Job]) -> Piece | None:
        """A chunk for the model; None where its features are no good, and its request has failed."""
        self._pace.read(chunk.size)
        job = chunk.task
        # ONNX Runtime's attention rounds a single token in another way than several. So the one before it is computed
        # again with it, and where a prompt was cut changes nothing.
        start = chunk.start - (chunk.size == 1 and chunk.start > 0)
        try:
            first, last = (rows_before(token, job.request.media) for token in (start, chunk.stop))
            return Piece(
                slot=job.place.row,
                start=start,
                token_ids=job.request.token_ids[start : chunk.stop],
                features=job.request.features.rows(first, last, self._shape.feature_width),
                positions=job.request.positions[:, start : chunk.stop],
            )
        except Exception:  # noqa: BLE001  # one request's failure is its own
            self._fail(job, traceback.format_exc())
            return None

    def _append(self, job: Job, drawn: TokenDrawn) -> None:
        job.answer.append(drawn.token_id)
        request = job.request
        stopped = drawn.token_id in request.stop_token_ids
        ended = stopped or len(job.answer) == request.max_new_tokens
        if ended:
            self._scheduler.remove(job, self._content(job))
        job.emit(drawn)
        if ended:
            job.emit(EngineFinished(FinishReason.STOP if stopped else FinishReason.LENGTH))

    def _content(self, job: Job) -> Content | None:
        """What the computed tokens of a request are, as far as others may go on from them.

        An answer's are computed by another graph than a prompt's, or at least rounded in another way. Whether they are
        still there depends on the load, and what the next turn of a conversation is told must not.
        """
        if job.slot is None:
            return None
        if not self._keep_answers:
            return job.prompt
        # The token drawn last is not computed.
        return job.prompt.followed_by(job.answer[: max(job.slot.length - len(job.prompt), 0)])

    def _fail_all(self, jobs: Sequence[Job]) -> None:
        """Those that an exception hit."""
        for job in jobs:
            if job.slot is not None:  # else it had its last token
                self._fail(job, traceback.format_exc())

    def _fail(self, job: Job, why: str) -> None:
        log.error("request failed in the engine", request_id=job.request.request_id, traceback=why)
        self._scheduler.remove(job, None)
        job.emit(failed())


def _next_tokens(row: int, jobs: Sequence[Job]) -> Step:
    """The next token of each of those who answer, who lie in neighbouring rows from `row` on."""
    return Step(
        first_slot=row,
        lengths=np.array([job.place.length for job in jobs], np.int64),
        token_ids=np.array([job.answer[-1] for job in jobs], np.int32),
        positions=np.array([job.request.positions[0, -1] + len(job.answer) - 1 for job in jobs], np.int64),
    )
