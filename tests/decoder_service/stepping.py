"""Runs the batch engine's steps in a test: without a thread or a clock, with a pace that the test sets."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from decoder_service.engine import EngineEvent, EngineFinished, EngineRequest, Prefilled, Prefilling, TokenDrawn
from decoder_service.engine.batching.kv import KvCache
from decoder_service.engine.batching.pace import Curve, Pace, Speed
from decoder_service.engine.batching.scheduler import Scheduler
from decoder_service.engine.batching.slots import GROWTH, Slots
from decoder_service.engine.batching.stepper import Job, Stepper
from decoder_service.engine.model import Model, Piece, Step
from decoder_service.engine.onnx.phases import Phases
from decoder_service.engine.onnx.runner import Runner
from serving.bundle import Bundle
from serving.errors import ServiceError


def two_graphs(bundle: Bundle) -> Runner:
    """The fp32 graph twice, as a bundle with INT8 has two: one decodes, the other prefills in parts of a layer."""
    runner = Runner(
        bundle.decoder_dir / "embedding.onnx",
        threads=1,
        layers=bundle.text.num_hidden_layers,
        head_size=bundle.text.head_dim,
    )
    runner.load("decode", bundle.graph_path("fp32"))
    runner.load("prefill", bundle.graph_path("fp32"), layers_at_once=1)
    return runner


class SetPace(Pace):
    """Rooms in turn, whatever speeds say, and a number of parts in turn.

    Args:
        rooms: Tokens of prompts to read in each step, beginning anew at the end.
        parts: Parts of chunks to compute in each step, likewise; more than a chunk has: all of it.
    """

    def __init__(self, rooms: Sequence[int], parts: Sequence[int] = (1000,)) -> None:
        curve = Curve((1,), (1.0,))
        super().__init__(Speed(curve, curve), chunk_tokens=1, stall=1)
        self._rooms = itertools.cycle(rooms)
        self._shares = itertools.cycle(parts)
        self._room = self._share = 0

    def begin(self, answering: int, prompts: int) -> None:
        self._room, self._share = next(self._rooms), next(self._shares)

    def room(self, answers: int = 0) -> int:
        return self._room if answers or not self.over else 0

    @property
    def over(self) -> bool:
        return self._share < 1

    def take(self, tokens: int) -> None:
        self._room -= tokens

    def spent(self, seconds: float) -> None:
        self._share -= 1


@dataclass(frozen=True)
class Call:
    """A run: the slots of its decode step, and the range of its prefill chunk."""

    rows: tuple[int, ...]
    read: tuple[int, int] | None

    @classmethod
    def of(cls, step: Step | None, piece: Piece | None) -> Call:
        return cls(
            tuple(range(step.first_slot, step.first_slot + step.lengths.size)) if step is not None else (),
            (piece.start, piece.start + piece.token_ids.size) if piece is not None else None,
        )


class Watched:
    """A model that remembers what it was asked for.

    Args:
        model: What computes.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.calls: list[Call] = []
        self.together, self.parts = model.together, model.parts

    def decode(self, step: Step | None, piece: Piece | None = None) -> NDArray[np.float32]:
        self.calls.append(Call.of(step, piece))
        return self.model.decode(step, piece)

    def prefill(self, piece: Piece, *, ends: bool = True) -> Iterator[NDArray[np.float32] | None]:
        self.calls.append(Call.of(None, piece))
        return self.model.prefill(piece, ends=ends)


@dataclass
class Answer:
    """The events of a request so far."""

    drawn: list[TokenDrawn] = field(default_factory=list)
    prefilling: list[Prefilling] = field(default_factory=list)
    prefilled: Prefilled | None = None
    finished: EngineFinished | None = None
    error: ServiceError | None = None

    @property
    def tokens(self) -> list[int]:
        """Its tokens alone."""
        return [drawn.token_id for drawn in self.drawn]

    def on_event(self, event: EngineEvent | ServiceError) -> None:
        match event:
            case Prefilling():
                assert self.prefilled is None
                self.prefilling.append(event)
            case Prefilled():
                self.prefilled = event
            case TokenDrawn():
                assert self.prefilled is not None
                self.drawn.append(event)
            case EngineFinished():
                self.finished = event
            case ServiceError():
                self.error = event


class Stepping:
    """A stepper over a bundle's own graph.

    Args:
        bundle: The model.
        runner: Its graphs: the first computes answers, the last one reads prompts.
        slots: Requests that run at once.
        caches: Finished requests that are kept beside those in free slots; None: no cache.
        rooms: Tokens to read in each step.
        parts: Parts of chunks to compute in each step.
        budget: Tokens in memory.
        parking: Tokens that are kept of parked requests.
        growth: Tokens in a step of memory.
        model: What computes; None: the runner's graphs by the phase.
        keep_answers: Whether answers' keys and values are kept, too.
    """

    def __init__(
        self,
        bundle: Bundle,
        runner: Runner,
        *,
        slots: int = 4,
        caches: int | None = None,
        rooms: Sequence[int] = (10_000,),
        parts: Sequence[int] = (1000,),
        budget: int = 100_000,
        parking: int = 0,
        growth: int = GROWTH,
        model: Model | None = None,
        keep_answers: bool = False,
    ) -> None:
        text = bundle.text
        rows = slots + (caches or 0)
        self.cache = KvCache(
            layers=text.num_hidden_layers,
            slots=rows,
            heads=text.num_key_value_heads,
            length=2048,
            width=runner.cache_width,
            dtype=runner.cache_dtype,
        )
        runner.use(self.cache.buffers)
        self.slots = Slots(
            self.cache,
            slots=rows,
            running=slots,
            budget=budget,
            caching=caches is not None,
            parking=parking,
            growth=growth,
        )
        self.model = Watched(model or Phases(runner, decode=runner.graphs[0], prefill=runner.graphs[-1]))
        self._shape = runner.shape
        self.answers: dict[Job, Answer] = {}
        self.scheduler = Scheduler[Job](self.slots, read_ahead=True, least_ahead=1)
        self.stepper = Stepper(
            self.model,
            self.scheduler,
            SetPace(rooms, parts),
            self._shape,
            keep_answers=keep_answers,
        )

    def add(self, request: EngineRequest, at: float = 0.0) -> Job:
        """Add a request."""
        answer = Answer()
        job = Job.of(request, self._shape, at, answer.on_event)
        self.answers[job] = answer
        self.stepper.add(job)
        return job

    def put(self, job: Job, index: int, rows: NDArray[np.float32], at: float = 0.0) -> None:
        """Add the features of one of its media."""
        job.request.features.put(index, rows)
        self.stepper.supply(job, at)

    def step(self) -> None:
        """Both halves of a step."""
        self.stepper.decode()
        self.stepper.prefill()

    def finish(self) -> None:
        """Run steps until all requests have finished."""
        while not self.stepper.idle:
            self.step()

    def answer(self, request: EngineRequest) -> Answer:
        """Run a single request to its end."""
        job = self.add(request)
        self.finish()
        return self.answers[job]
