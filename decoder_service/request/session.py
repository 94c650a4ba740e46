"""One request, from its opening to its last event. Knows nothing of gRPC.

opened ── needed ──▶ headers ── laid out: started ──▶ features ──▶ answering ──▶ finished
                                                          └ the prompt is read as far as they have come
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass

from decoder_service.chat import Layout
from decoder_service.engine import (
    EngineEvent,
    EngineFinished,
    EngineRequest,
    FinishReason,
    Limit,
    Prefilled,
    Prefilling,
    TokenDrawn,
)
from decoder_service.engine.supervisor import not_ready
from decoder_service.families.family import Prompt
from decoder_service.metrics import Progress
from decoder_service.output.pipeline import Delta, Output
from decoder_service.request.admission import answer_bound, check_room
from decoder_service.request.decoder import Decoder
from decoder_service.request.feature_store import media_key
from decoder_service.request.intake import FeatureIntake
from decoder_service.request.opening import Opening
from decoder_service.request.prompt import Rendered
from serving.tasks import beside


@dataclass(frozen=True)
class Started:
    """The prompt is laid out.

    Attributes:
        request_id: The request's id.
        model: Name of the model.
        prompt_tokens: All tokens of the prompt.
        media_tokens: Rows of features among them.
        prompt_token_ids: The ids, where they were asked for.
        layouts: One for each medium, in order.
        max_tokens: Most tokens that the answer will have.
    """

    request_id: str
    model: str
    prompt_tokens: int
    media_tokens: int
    prompt_token_ids: tuple[int, ...]
    layouts: tuple[Layout, ...]
    max_tokens: int


class Stage(enum.Enum):
    """What a request is doing before its first token."""

    QUEUED = "queued"
    PREFILL = "prefill"


@dataclass(frozen=True)
class StageProgress:
    """How far a request is, where it asks.

    Attributes:
        stage: What is being done.
        done: How much of it.
        total: Of how much; 0 where it cannot be told.
    """

    stage: Stage
    done: int = 0
    total: int = 0


@dataclass(frozen=True)
class Usage:
    """What was counted, in tokens."""

    prompt_tokens: int
    completion_tokens: int
    media_tokens: int
    cached_tokens: int


@dataclass(frozen=True)
class Timings:
    """Where the time went, in seconds. What encoding took is for the caller to say."""

    queue: float
    prefill: float
    decode: float
    time_to_first_token: float


@dataclass(frozen=True)
class Finished:
    """The last event.

    Attributes:
        reason: Why the answer ended.
        usage: What was counted.
        timings: Where the time went.
        limit: Which limit ended it, where the reason is LENGTH.
    """

    reason: FinishReason
    usage: Usage
    timings: Timings
    limit: Limit | None = None


Event = Started | StageProgress | Delta | Finished


class Session:
    """One request. Made by `open_session`; `intake`, `start` and `events` once it is laid out.

    Args:
        decoder: What is loaded.
        opening: The request.
        rendered: Its conversation.
        intake: Takes in the features.
        arrived: When the request came, by `time.perf_counter`.
        progress: Counts it.
    """

    def __init__(
        self,
        decoder: Decoder,
        opening: Opening,
        rendered: Rendered,
        intake: FeatureIntake,
        *,
        arrived: float,
        progress: Progress,
    ) -> None:
        self._decoder = decoder
        self._opening = opening
        self._rendered = rendered
        self._arrived = arrived
        self._progress = progress
        self.intake = intake
        self._prompt: Prompt | None = None
        self._max_tokens = 0
        self._limit = Limit.MAX_TOKENS

    async def start(self) -> Started:
        """Lay the prompt out. Once `intake` has all layouts, be the features there or not.

        Raises:
            ServiceError: It leaves no room for the answer.
        """
        decoder, generation = self._decoder, self._opening.generation
        layouts = self.intake.layouts()
        keys = [media_key(layout.medium, self.intake.encoder) for layout in layouts]
        prompt = self._prompt = await asyncio.to_thread(decoder.prompts.expand, self._rendered, layouts, keys)
        free = check_room(len(prompt.token_ids), generation.must_fit, decoder.limits.context_length)
        self._max_tokens, self._limit = answer_bound(generation, free, decoder.limits)
        return Started(
            self._opening.request_id,
            decoder.model.id,
            len(prompt.token_ids),
            prompt.media_tokens,
            prompt.token_ids if generation.return_prompt_token_ids else (),
            layouts,
            self._max_tokens,
        )

    async def events(
        self, arriving: asyncio.Task[None] | None = None, *, until: float = math.inf
    ) -> AsyncGenerator[Event, None]:
        """The answer. After `start`. Closing the generator frees the engine.

        Args:
            arriving: Whoever feeds `intake`, where it is not complete; done when it is.
            until: When an answer that has been begun is to end, by the event loop's clock. What is written by then is
                an answer; before the first token there is none, and this is of no account.

        Raises:
            ServiceError: From the engine, or what `arriving` raises.
        """
        decoder, generation, prompt = self._decoder, self._opening.generation, self._prompt
        if prompt is None:
            raise RuntimeError("start comes before events")
        output = Output(decoder.token_bytes, end_tokens=decoder.model.end_tokens, stop=generation.stop)
        tally = _Tally(prompt, self._progress, self._arrived)
        queued = self._opening.report_progress  # where nobody asks, nobody need know
        # Leaving the block, for whatever reason, frees the engine: also where a stop string ends the answer.
        async with (
            contextlib.aclosing(decoder.engine.generate(self._engine_request(prompt))) as engine_events,
            contextlib.aclosing(beside(engine_events, arriving)) as events,
        ):
            while True:
                match event := await _next(events, until if tally.begun else math.inf):
                    case None:
                        if queued:
                            yield StageProgress(Stage.QUEUED)
                    case Prefilling():
                        queued = False
                        yield StageProgress(Stage.PREFILL, event.done, event.total)
                    case Prefilled():
                        tally.prefill(event)
                    case TokenDrawn():
                        tally.token()
                        for delta in output.push(event):
                            yield delta
                        if output.stopped:
                            break
                    case EngineFinished():
                        if event.reason is FinishReason.LENGTH:
                            tally.limit = event.limit or self._limit
                        break
        for delta in output.finish():
            yield delta
        yield tally.finish()

    def _engine_request(self, prompt: Prompt) -> EngineRequest:
        return EngineRequest(
            request_id=self._opening.request_id,
            token_ids=prompt.engine_token_ids,
            positions=prompt.positions,
            features=self.intake.rows(),
            media=prompt.media,
            sampling=self._opening.generation.sampling,
            max_new_tokens=self._max_tokens,
            stop_token_ids=self._decoder.model.end_tokens,
            inputs=prompt.inputs,
            report_progress=self._opening.report_progress,
        )


class _Tally:
    """Counts and times one answer.

    Args:
        prompt: Its prompt.
        progress: Is told of it.
        arrived: When the request came, by `time.perf_counter`.
    """

    def __init__(self, prompt: Prompt, progress: Progress, arrived: float) -> None:
        self._prompt = prompt
        self._progress = progress
        self._arrived = self._first = self._last = arrived
        self._prefilled = Prefilled(0.0, 0.0)
        self._drawn = 0
        self.limit: Limit | None = None
        """Which limit ended the answer, if any did."""

    @property
    def begun(self) -> bool:
        """Whether a token has come."""
        return self._drawn > 0

    def prefill(self, prefilled: Prefilled) -> None:
        """The prompt has been read."""
        self._prefilled = prefilled
        self._progress.prefilled(len(self._prompt.token_ids), prefilled.cached_tokens, prefilled.queue_seconds)

    def token(self) -> None:
        """A token has come."""
        self._last = time.perf_counter()
        if self._drawn == 0:
            self._first = self._last
            self._progress.first_token(self._first - self._arrived)
        self._drawn += 1
        self._progress.token()

    def finish(self) -> Finished:
        """The answer is whole."""
        decode_seconds = self._last - self._first
        self._progress.finished(self._drawn, decode_seconds)
        prefilled, prompt = self._prefilled, self._prompt
        return Finished(
            FinishReason.STOP if self.limit is None else FinishReason.LENGTH,
            Usage(len(prompt.token_ids), self._drawn, prompt.media_tokens, prefilled.cached_tokens),
            Timings(prefilled.queue_seconds, prefilled.prefill_seconds, decode_seconds, self._first - self._arrived),
            self.limit,
        )


async def _next(events: AsyncGenerator[EngineEvent | None, None], until: float) -> EngineEvent | None:
    """The next event; where none comes by that time, the answer is at its end."""
    if until == math.inf:
        return await anext(events)
    try:
        if asyncio.get_running_loop().time() >= until:  # also where there is no waiting
            raise TimeoutError
        async with asyncio.timeout_at(until):
            return await anext(events)
    except TimeoutError:
        return EngineFinished(FinishReason.LENGTH, Limit.DEADLINE)


@contextlib.asynccontextmanager
async def open_session(decoder: Decoder, opening: Opening, *, arrived: float) -> AsyncIterator[Session]:
    """Take a place and lay the text out.

    Args:
        decoder: What is loaded.
        opening: The request.
        arrived: When it came, by `time.perf_counter`.

    Raises:
        ServiceError: RESOURCE_EXHAUSTED where the queue is full or the text alone is too long; UNAVAILABLE where the
            engine is down; what `PromptBuilder.render` raises.
    """
    if not decoder.engine.ready:
        raise not_ready()
    with decoder.admission.enter() as place, Progress() as progress:
        rendered = await asyncio.to_thread(decoder.prompts.render, opening.messages)
        intake = FeatureIntake(decoder, rendered, opening.encoder_dtype, opening.generation.must_fit, place)
        yield Session(decoder, opening, rendered, intake, arrived=arrived, progress=progress)
