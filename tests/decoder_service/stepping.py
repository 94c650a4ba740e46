"""Runs the batch engine's steps in a test: without a thread or a clock, with a pace that the test sets."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from decoder_service.engine import EngineEvent, EngineFinished, EngineRequest, Prefilled, Prefilling, TokenDrawn
from decoder_service.engine.batching.kv import KvCache
from decoder_service.engine.batching.pace import Curve, Pace, Speed
from decoder_service.engine.batching.scheduler import Scheduler
from decoder_service.engine.batching.slots import Slots
from decoder_service.engine.batching.stepper import Job, Stepper
from decoder_service.engine.model import Model, Piece, Step
from decoder_service.engine.onnx.runner import Runner
from serving.bundle import Bundle
from serving.errors import ServiceError


class SetPace(Pace):
    """Rooms and graphs in a fixed cycle, independent of speeds.

    Args:
        graphs: Names of graphs.
        rooms: Prompt tokens to prefill in each step, as a cycle.
    """

    def __init__(self, graphs: Sequence[str], rooms: Sequence[int]) -> None:
        curve = Curve((1,), (1.0,))
        super().__init__(dict.fromkeys(graphs, Speed(curve, curve)), chunk_tokens=1, stall=1)
        self._turns = itertools.cycle(graphs)
        self._rooms = itertools.cycle(rooms)

    def graph(self, answers: int, tokens: int) -> str:
        return next(self._turns)

    def room(self, answering: int, prompts: int = 1) -> int:
        return next(self._rooms)


@dataclass(frozen=True)
class Call:
    """A run: the slots of its decode step, and the range of its prefill chunk."""

    rows: tuple[int, ...]
    read: tuple[int, int] | None


@dataclass
class Watched:
    """A model that records its runs."""

    model: Model
    calls: list[Call] = field(default_factory=list)

    def run(self, graph: str, *, step: Step | None = None, piece: Piece | None = None) -> NDArray[np.float32]:
        self.calls.append(
            Call(
                tuple(range(step.first_slot, step.first_slot + step.lengths.size)) if step is not None else (),
                (piece.start, piece.start + piece.token_ids.size) if piece is not None else None,
            )
        )
        return self.model.run(graph, step=step, piece=piece)


@dataclass
class Answer:
    """The events of a request so far."""

    tokens: list[int] = field(default_factory=list)
    prefilling: list[Prefilling] = field(default_factory=list)
    prefilled: Prefilled | None = None
    finished: EngineFinished | None = None
    error: ServiceError | None = None

    def on_event(self, event: EngineEvent | ServiceError) -> None:
        match event:
            case Prefilling():
                assert self.prefilled is None
                self.prefilling.append(event)
            case Prefilled():
                self.prefilled = event
            case TokenDrawn():
                assert self.prefilled is not None
                self.tokens.append(event.token_id)
            case EngineFinished():
                self.finished = event
            case ServiceError():
                self.error = event


class Stepping:
    """A stepper over a bundle's own graph.

    Args:
        bundle: The model.
        runner: Its graphs.
        slots: Most requests that run at once.
        caches: Prefix caches besides those in free slots; None: no prefix cache.
        rooms: Tokens to prefill in each step.
        budget: Tokens in memory.
    """

    def __init__(
        self,
        bundle: Bundle,
        runner: Runner,
        *,
        slots: int = 4,
        caches: int | None = None,
        rooms: Sequence[int] = (10_000,),
        budget: int = 100_000,
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
        self.slots = Slots(self.cache, slots=rows, running=slots, budget=budget, caching=caches is not None)
        self.model = Watched(runner)
        self._shape = runner.shape
        self.answers: dict[Job, Answer] = {}
        self.scheduler = Scheduler[Job](self.slots, read_ahead=True, least_ahead=1)
        self.stepper = Stepper(
            self.model,
            self.scheduler,
            SetPace(runner.graphs, rooms),
            self._shape,
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
