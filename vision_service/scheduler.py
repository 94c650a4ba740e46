"""Schedules the encoder: a bounded number of requests, a thread pool for preprocessing, one thread for encoding.

Preprocessing of some requests overlaps with the encoding of others. Waiting media are encoded in one batch, in order of
arrival, up to a number of patches. A larger video is encoded some frames at a time, and returns to the end of the queue
after each batch, so that no medium waits for a whole video of another request. Independent of gRPC.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import structlog
import torch

from serving.errors import Reason, ServiceError, failure, overloaded, unavailable
from serving.memory import lacks_memory
from vision_service.family import Encoder
from vision_service.media import Cancelled, Kind, Options, PreparedMedium, WorkCancelledError

Prepare = Callable[[Kind, bytes, Options, Cancelled], PreparedMedium]
"""The signature of `Preprocessor.prepare`."""

log = structlog.get_logger()

# Bounds of the retry delay of refused requests, in seconds.
_LEAST_RETRY, _GREATEST_RETRY = 0.5, 30.0

# Weight of the newest batch in the moving average of the speed, if it is as large as the one measured at the start. A
# smaller batch counts less: most of its time does not depend on patches.
_NEWEST = 0.3

_MEASURED_SIDE = 8
"""Tokens along each side of the image that is timed at the start."""

_TIMED, _TIMING_SECONDS = 3, 1.0
"""Most timed runs, of which the fastest counts, and the seconds after which no further run starts."""


@dataclass(eq=False)
class Meter:
    """Progress of the encoding of one medium, in patches.

    Attributes:
        total: Patches of the medium; 0 while it is being decoded.
        done: Encoded patches; within a forward pass, in proportion to its finished layers.
    """

    total: int = 0
    done: int = 0


class Estimate(NamedTuple):
    """The estimated time of encoding a medium, in seconds.

    Attributes:
        ahead: The media before it.
        own: The medium itself.
    """

    ahead: float
    own: float


@dataclass(eq=False)
class _Job:
    """A medium that is waiting or being encoded.

    The encoder's thread reads `abandoned`, and writes `features` and the meter.
    """

    medium: PreparedMedium
    result: asyncio.Future[torch.Tensor]
    meter: Meter
    abandoned: bool = field(default=False)
    taken: int = field(default=0)  # frames that were passed to the encoder
    encoded: int = field(default=0)  # frames whose features are computed
    features: torch.Tensor | None = field(default=None)

    @property
    def frame_patches(self) -> int:
        return self.medium.grid.h * self.medium.grid.w

    @property
    def frames_left(self) -> int:
        return self.medium.grid.t - self.taken

    def take(self, frames: int) -> _Piece:
        piece = _Piece(self, self.medium.frames(self.taken, frames))
        self.taken += frames
        return piece

    def keep(self, features: torch.Tensor, frames: int) -> None:
        """Store the features of the next frames."""
        total = self.medium.grid.t
        if frames == total:
            self.features = features
        else:
            rows = len(features) // frames
            if self.features is None:
                self.features = features.new_empty((rows * total, features.shape[1]))
            self.features[rows * self.encoded : rows * (self.encoded + frames)] = features
        self.encoded += frames
        self.advance(0.0, 0)

    def advance(self, share: float, frames: int) -> None:
        """Record that a share of the next frames is done."""
        self.meter.done = round(self.frame_patches * (self.encoded + share * frames))


class UnusableEncoderError(Exception):
    """The encoder computes no features. The message says what it computes instead."""


class _NotFiniteError(Exception):
    """Features contain infinities or NaN."""


class _Piece(NamedTuple):
    """Frames of a job that are encoded in one forward pass."""

    job: _Job
    medium: PreparedMedium


class Scheduler:
    """Selects the batches of the encoder. All methods are for the event loop's thread.

    Args:
        prepare: Preprocesses a medium; called from several threads at once.
        encoder: Used only by one thread of this scheduler.
        max_queue: Most requests held at once.
        max_batch_patches: Media are encoded together up to this many patches; a larger frame is encoded alone.
        workers: Most media that are preprocessed at once.
        threads: CPU threads of the encoder.
    """

    def __init__(
        self,
        prepare: Prepare,
        encoder: Encoder,
        *,
        max_queue: int,
        max_batch_patches: int,
        workers: int,
        threads: int,
    ) -> None:
        self._prepare = prepare
        self._encoder = encoder
        self._max_queue = max_queue
        self._max_batch_patches = max_batch_patches
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="preprocess")
        self._thread = ThreadPoolExecutor(
            1, thread_name_prefix="encode", initializer=torch.set_num_threads, initargs=(threads,)
        )
        self._held = 0
        self._waiting: deque[_Job] = deque()
        self._running: Sequence[_Piece] = ()
        self._running_share = 0.0  # finished share of it; written by the encoder's thread
        self._arrived = asyncio.Event()
        self._measured = encoder.cost.medium(encoder.blank(_MEASURED_SIDE).grid)
        self._rate: float | None = None  # of `encoder.cost`, per second
        self.proven = False
        """Whether the speed is known from media of ordinary size, and not only from the start."""
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Warm up the encoder, check its features, measure its speed, and start to process media.

        If that fails, or is cancelled, the threads end.

        Raises:
            UnusableEncoderError: The features of an empty image are not finite, or all are equal.
        """
        try:
            seconds = await asyncio.get_running_loop().run_in_executor(self._thread, self._time)
        except BaseException:
            await self.stop()
            raise
        self._learn(self._measured, seconds)
        self._task = asyncio.create_task(self._run(), name="encode")

    def _time(self) -> float:
        """Time an image of ordinary size, in seconds. In the encoder's thread."""
        (features,) = self._encoder.encode([self._encoder.blank()])  # the first pass allocates memory
        if not _finite(features):
            raise UnusableEncoderError("its features are not finite")
        if features.min() == features.max():
            raise UnusableEncoderError("its features are all equal")
        image = self._encoder.blank(_MEASURED_SIDE)
        began, fastest = time.monotonic(), math.inf
        for _ in range(_TIMED):
            started = time.monotonic()
            self._encoder.encode([image])
            fastest = min(fastest, time.monotonic() - started)
            if time.monotonic() - began > _TIMING_SECONDS:
                break
        return fastest

    async def stop(self) -> None:
        """Refuse waiting media, cancel the running batch, and end the threads."""
        for job in {*self._waiting, *(piece.job for piece in self._running)}:
            job.abandoned = True
            if not job.result.done():
                job.result.set_exception(_shutting_down())
        self._waiting.clear()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        for pool in (self._pool, self._thread):
            await asyncio.to_thread(pool.shutdown, cancel_futures=True)

    @property
    def waiting(self) -> int:
        """Number of media that wait for the encoder."""
        return len(self._waiting)

    @property
    def held(self) -> int:
        """Number of requests held now."""
        return self._held

    @contextlib.contextmanager
    def admit(self) -> Iterator[None]:
        """Hold a place for one request, from its arrival until its features are sent: they take memory until then.

        Raises:
            ServiceError: RESOURCE_EXHAUSTED with reason QUEUE_FULL and a retry delay.
        """
        if self._held >= self._max_queue:
            raise overloaded(
                Reason.QUEUE_FULL,
                f"the vision service holds {self._held} requests, which is its limit (max_queue); try again later",
                retry_after=self._retry_after(),
            )
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1

    async def prepare(self, kind: Kind, data: bytes, options: Options) -> PreparedMedium:
        """Preprocess one medium in the pool.

        Raises:
            ServiceError: Errors of `Preprocessor.prepare`, or OUT_OF_MEMORY.
        """
        abandoned = threading.Event()
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._pool, self._prepare, kind, data, options, abandoned.is_set
            )
        except MemoryError as error:
            raise failure(Reason.OUT_OF_MEMORY, f"there is no memory to decode the {kind}; make it smaller") from error
        finally:
            abandoned.set()  # on cancellation, also stops the pool's thread

    @contextlib.contextmanager
    def enqueue(self, medium: PreparedMedium, meter: Meter | None = None) -> Iterator[asyncio.Future[torch.Tensor]]:
        """Enqueue a medium. Leaving the context removes it from the queue, or cancels its encoding.

        Args:
            medium: The medium.
            meter: Receives its progress.

        Yields:
            The future of its features: [tokens, feature width].
        """
        meter = Meter() if meter is None else meter
        meter.total = medium.grid.patches
        job = _Job(medium, asyncio.get_running_loop().create_future(), meter)
        self._waiting.append(job)
        self._arrived.set()
        try:
            yield job.result
        finally:
            job.result.cancel()
            self._drop(job)

    def estimate(self, medium: PreparedMedium) -> Estimate | None:
        """Estimate the time of a medium that arrives now, by the measured speed; None if none was measured."""
        if self._rate is None:
            return None
        cost, grid = self._encoder.cost, medium.grid
        turns = math.ceil(grid.t / self._frames_per_turn(grid.h * grid.w))
        ahead = self._running_cost()
        for job in self._waiting:
            # A video longer than one turn returns to the end of the queue after each turn, so it alternates with
            # others.
            frames = min(job.frames_left, turns * self._frames_per_turn(job.frame_patches))
            ahead += frames * cost.frame(job.frame_patches)
        return Estimate(ahead / self._rate, cost.medium(grid) / self._rate)

    def affordable_patches(self, seconds: float, frames: int = 1) -> int:
        """Most patches of a medium of `frames` frames that can be encoded within `seconds`."""
        if self._rate is None:
            return 0
        return frames * self._encoder.cost.largest_frame(seconds * self._rate / frames)

    def _frames_per_turn(self, frame_patches: int) -> int:
        return max(1, self._max_batch_patches // frame_patches)

    def _running_cost(self) -> float:
        """Remaining cost of the running batch."""
        cost = sum(self._encoder.cost.medium(piece.medium.grid) for piece in self._running)
        return cost * (1.0 - self._running_share)

    async def _run(self) -> None:
        while True:
            if not self._waiting:
                self._arrived.clear()
                await self._arrived.wait()
                continue
            self._running, self._running_share = self._take(), 0.0
            await self._encode(self._running)
            self._running = ()

    def _take(self) -> list[_Piece]:
        """Take the next batch: the media that have waited longest, as many as there is room for."""
        batch: list[_Piece] = []
        room, again = self._max_batch_patches, []
        while self._waiting:
            job = self._waiting[0]
            frames = min(job.frames_left, max(room, 0) // job.frame_patches)
            if not frames:
                if batch:
                    break
                frames = 1  # larger than a batch
            self._waiting.popleft()
            batch.append(job.take(frames))
            room -= frames * job.frame_patches
            if job.frames_left:
                again.append(job)
        self._waiting.extend(again)
        return batch

    def _drop(self, job: _Job) -> None:
        """Remove a job that was cancelled or has failed."""
        job.abandoned = True
        with contextlib.suppress(ValueError):  # it is no longer waiting
            self._waiting.remove(job)

    async def _encode(self, batch: Sequence[_Piece], *, again: bool = False) -> None:
        """Encode a batch.

        Args:
            batch: The batch.
            again: Whether the features were not finite at the first attempt.
        """
        started = time.monotonic()
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._forward, batch)
        except WorkCancelledError:
            return  # all its calls were cancelled
        except Exception as error:  # noqa: BLE001  # passed to the calls that wait for it
            await self._encode_failed(batch, error, again=again)
            return
        for job in (piece.job for piece in batch):
            if job.encoded == job.medium.grid.t and job.features is not None and not job.result.done():
                job.result.set_result(job.features)
        patches = sum(piece.medium.grid.patches for piece in batch)
        seconds = time.monotonic() - started
        cost = sum(self._encoder.cost.medium(piece.medium.grid) for piece in batch)
        self._learn(cost, seconds)
        self.proven |= cost >= self._measured
        log.debug("encoded", media=len(batch), patches=patches, seconds=round(seconds, 4))

    def _forward(self, batch: Sequence[_Piece]) -> None:
        """Run the forward pass. In the encoder's thread."""

        def cancelled() -> bool:
            return all(piece.job.abandoned for piece in batch)

        def advance(share: float) -> None:
            self._running_share = share
            for piece in batch:
                piece.job.advance(share, piece.medium.grid.t)

        features = self._encoder.encode([piece.medium for piece in batch], cancelled, advance)
        if not all(map(_finite, features)):  # before any of them is stored
            raise _NotFiniteError("the features are not finite")
        for piece, one in zip(batch, features, strict=True):
            piece.job.keep(one, piece.medium.grid.t)

    async def _encode_failed(self, batch: Sequence[_Piece], error: Exception, *, again: bool) -> None:
        """Handle a failed batch: encode each medium alone, so that one medium does not fail the others.

        Features that are not finite are computed a second time even if the medium was alone: a fault of the machine
        may not repeat itself.
        """
        not_finite = isinstance(error, _NotFiniteError)
        if len(batch) > 1 or (not_finite and not again):
            log.warning("a batch failed and is encoded one by one", media=len(batch), error=str(error))
            for piece in batch:
                if not piece.job.abandoned:
                    await self._encode([piece], again=not_finite)
            return
        (piece,) = batch
        if not_finite:
            log.error("features are not finite", patches=piece.medium.grid.patches)
            error = failure(
                Reason.FEATURES_NOT_FINITE,
                "the encoder's features of this medium contain numbers that are not finite, twice in a row",
            )
        elif isinstance(error, torch.OutOfMemoryError) or lacks_memory(error):
            error = failure(
                Reason.OUT_OF_MEMORY,
                f"the encoder's device has no memory for {piece.medium.grid.patches} patches; make the media smaller",
            )
        self._drop(piece.job)
        if not piece.job.result.done():
            piece.job.result.set_exception(error)

    def _learn(self, cost: float, seconds: float) -> None:
        rate = cost / max(seconds, 1e-6)
        weight = _NEWEST * min(cost / self._measured, 1.0)
        self._rate = rate if self._rate is None else (1 - weight) * self._rate + weight * rate

    def _retry_after(self) -> float:
        """Half of the time of the current work, after which there is room again."""
        if self._rate is None:
            return _LEAST_RETRY
        cost = self._running_cost()
        cost += sum(job.frames_left * self._encoder.cost.frame(job.frame_patches) for job in self._waiting)
        return min(max(cost / self._rate / 2, _LEAST_RETRY), _GREATEST_RETRY)


def _shutting_down() -> ServiceError:
    return unavailable(Reason.SHUTTING_DOWN, "the vision service is shutting down")


def _finite(features: torch.Tensor) -> bool:
    """Whether all numbers are finite. `aminmax` passes NaN on, and takes a tenth of the time of `isfinite`."""
    return all(math.isfinite(bound) for bound in torch.aminmax(features))
