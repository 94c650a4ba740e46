"""One request, from its opening to its last event. Independent of gRPC.

opened ── needed ──▶ headers ── laid out: started ──▶ features ──▶ decoding ──▶ finished
                                                          └ the prompt is prefilled as far as they have arrived
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import enum
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass

from decoder_service.chat import Layout, RawPrompt
from decoder_service.engine import (
    Constraint,
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
from decoder_service.output.constraint import AfterReasoning, Form, FormError
from decoder_service.output.pipeline import Delta, Output
from decoder_service.output.reasoning import Reasoning
from decoder_service.output.repetition import Repetition
from decoder_service.output.tool_calls import ToolCallDelta, ToolCalls
from decoder_service.request.admission import Place, answer_bound, check_positions, check_room
from decoder_service.request.decoder import Decoder
from decoder_service.request.intake import FeatureIntake
from decoder_service.request.opening import Opening
from decoder_service.request.prompt import Rendered
from decoder_service.request.thinking import Thinking
from decoder_service.request.tools import Choice
from serving.errors import Reason, ServiceError, invalid, unimplemented
from serving.tasks import beside, merged

_FORM = "generation.response_format"


@dataclass(frozen=True)
class Started:
    """The prompt is laid out.

    Attributes:
        request_id: The request's id.
        model: Name of the model.
        prompt_tokens: All tokens of the prompt.
        media_tokens: Tokens of media among them.
        prompt_token_ids: The ids, if requested.
        layouts: The layout of each medium, in order.
        max_tokens: Most tokens of the answer.
    """

    request_id: str
    model: str
    prompt_tokens: int
    media_tokens: int
    prompt_token_ids: tuple[int, ...]
    layouts: tuple[Layout, ...]
    max_tokens: int


class Stage(enum.Enum):
    """The stage of a request before its first token."""

    QUEUED = "queued"
    PREFILL = "prefill"


@dataclass(frozen=True)
class StageProgress:
    """Progress before the first token, if the request asks for it.

    Attributes:
        stage: The current stage.
        done: Finished units of it.
        total: All units of it; 0 if unknown.
    """

    stage: Stage
    done: int = 0
    total: int = 0


@dataclass(frozen=True)
class Usage:
    """Token counts."""

    prompt_tokens: int
    completion_tokens: int
    media_tokens: int
    cached_tokens: int
    reasoning_tokens: int = 0


@dataclass(frozen=True)
class Timings:
    """Durations in seconds. The caller adds the encoding time."""

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
        limit: The limit that ended it, if the reason is LENGTH.
        called: Whether it ended by itself and calls tools.
        choice: Number of the answer.
    """

    reason: FinishReason
    usage: Usage
    timings: Timings
    limit: Limit | None = None
    called: bool = False
    choice: int = 0


Event = Started | StageProgress | Delta | ToolCallDelta | Finished


class Session:
    """One request. Made by `open_session`; `intake`, `start` and `events` once it is laid out.

    Args:
        decoder: The loaded model.
        opening: The request.
        rendered: Its tokenized conversation.
        intake: Receives its features.
        arrived: When the request arrived, by `time.perf_counter`.
        place: Its admission.
        progress: Its metrics.
        constraints: For each answer, which tokens may be drawn; None: all.
    """

    def __init__(
        self,
        decoder: Decoder,
        opening: Opening,
        rendered: Rendered,
        intake: FeatureIntake,
        *,
        arrived: float,
        place: Place,
        progress: Progress,
        constraints: Sequence[Constraint | None] = (None,),
    ) -> None:
        self._decoder = decoder
        self._opening = opening
        self._rendered = rendered
        self._arrived = arrived
        self._progress = progress
        self._constraints = constraints
        self.intake = intake
        self.place = place
        """Its admission."""
        self._prompt: Prompt | None = None
        self._max_tokens = 0
        self._limit = Limit.MAX_TOKENS

    async def start(self) -> Started:
        """Lay out the prompt. After `intake` has all layouts, with or without the features.

        Raises:
            ServiceError: The prompt leaves no room for the answer.
        """
        decoder, generation = self._decoder, self._opening.generation
        layouts = self.intake.layouts()
        keys = [self.intake.key(layout.medium) for layout in layouts]
        prompt = self._prompt = await asyncio.to_thread(decoder.prompts.expand, self._rendered, layouts, keys)
        if prompt.inputs is None and decoder.engine.info.own_positions:
            raise unimplemented("messages", "send no video of this model, or serve it with --engine batch")
        free = check_room(len(prompt.token_ids), generation.must_fit, decoder.limits.context_length)
        if decoder.limits.positions is not None:
            free = min(free, check_positions(prompt.positions, generation.must_fit, decoder.limits.positions))
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
        """Generate the answers. After `start`. Closing the generator frees the engine.

        The first prefills the prompt. The others start when that is done, with its keys and values.

        Args:
            arriving: The task that feeds `intake`, if it is not complete; done when it is.
            until: When an answer that has started ends, by the event loop's clock. No effect before its first token.

        Raises:
            ServiceError: From the engine, or from `arriving`.
        """
        prefilled = asyncio.Event()
        first, *others = (
            self._answer(number, prefilled, arriving if number == 0 else None, until)
            for number in range(self._opening.generation.choices)
        )
        # A single answer needs no task per token.
        async with contextlib.aclosing(
            merged([first, *others], at_once=1 + len(others)) if others else first
        ) as events:
            try:
                async for event in events:
                    yield event
            except ServiceError as error:
                if error.reason == Reason.LOGITS_NOT_FINITE.name:
                    self.intake.distrust()
                raise

    async def _answer(
        self, number: int, prefilled: asyncio.Event, arriving: asyncio.Task[None] | None, until: float
    ) -> AsyncGenerator[Event, None]:
        if number == 0:
            async with contextlib.aclosing(self._generate(0, self._progress, arriving, until, prefilled)) as events:
                async for event in events:
                    yield event
            return
        await prefilled.wait()
        with Progress() as progress:
            async with contextlib.aclosing(self._generate(number, progress, None, until, prefilled)) as events:
                async for event in events:
                    if isinstance(event, Delta | ToolCallDelta | Finished):
                        yield dataclasses.replace(event, choice=number)

    async def _generate(
        self,
        number: int,
        progress: Progress,
        arriving: asyncio.Task[None] | None,
        until: float,
        prefilled: asyncio.Event,
    ) -> AsyncGenerator[Event, None]:
        """The events of one answer; sets `prefilled` when the prompt is."""
        decoder, prompt = self._decoder, self._prompt
        if prompt is None:
            raise RuntimeError("start comes before events")
        output = self._output()
        tally = _Tally(prompt, progress, self._arrived)
        queued = self._opening.report_progress  # sent at most once, and only if requested
        # Leaving the block frees the engine, also when a stop string ends the answer.
        async with (
            contextlib.aclosing(decoder.engine.generate(self._engine_request(prompt, number))) as engine_events,
            contextlib.aclosing(beside(engine_events, arriving)) as events,
        ):
            while True:
                match event := await self._next(events, until if tally.begun else math.inf):
                    case None:
                        if queued:
                            yield StageProgress(Stage.QUEUED)
                    case Prefilling():
                        queued = False
                        yield StageProgress(Stage.PREFILL, event.done, event.total)
                    case Prefilled():
                        self.place.start(event.prefill_seconds)
                        tally.prefill(event)
                        prefilled.set()
                    case TokenDrawn():
                        tally.token()
                        for delta in output.push(event):
                            yield delta
                        if output.ended:
                            tally.limit = Limit.REPETITION if output.in_circles else None
                            break
                    case EngineFinished():
                        if event.reason is FinishReason.LENGTH:
                            tally.limit = event.limit or self._limit
                        break
        for delta in output.finish():
            yield delta
        yield tally.finish(output.reasoning_tokens, called=output.called)

    async def _next(self, events: AsyncGenerator[EngineEvent | None, None], until: float) -> EngineEvent | None:
        """As the function `_next`; before the end of the prefill the request can be evicted."""
        if self.place.started is not None:
            return await _next(events, until)
        async with self.place.waiting():
            return await anext(events)

    def _output(self) -> Output:
        decoder, generation, tools = self._decoder, self._opening.generation, self._opening.tools
        thinking, reasoning = _thinking(decoder, self._opening), None
        if thinking is not None:
            reasoning = Reasoning(thinking.marks, opened=self._rendered.opens_reasoning)
        return Output(
            decoder.token_bytes,
            end_tokens=decoder.model.end_tokens | generation.stop_token_ids,
            stop=generation.stop,
            reasoning=reasoning,
            repetition=Repetition(generation.repetition) if generation.repetition else None,
            calls=ToolCalls(one=tools.one_call, must=tools.choice is Choice.REQUIRED) if tools.offered else None,
        )

    def _stop_tokens(self) -> frozenset[int]:
        generation = self._opening.generation
        # Only an end token may follow a complete form.
        if generation.ignore_eos and self._constraints[0] is None:
            return generation.stop_token_ids
        return generation.stop_token_ids | self._decoder.model.end_tokens

    def _engine_request(self, prompt: Prompt, number: int) -> EngineRequest:
        sampling = self._opening.generation.sampling
        return EngineRequest(
            request_id=self._opening.request_id,
            token_ids=prompt.engine_token_ids,
            positions=prompt.positions,
            features=self.intake.rows(),
            media=prompt.media,
            sampling=dataclasses.replace(sampling, seed=(sampling.seed + number) % (1 << 64)),
            max_new_tokens=self._max_tokens,
            stop_token_ids=self._stop_tokens(),
            inputs=prompt.inputs or {},
            report_progress=self._opening.report_progress and number == 0,
            constraint=self._constraints[number],
            cache_scope=self._opening.cache_scope,
        )


class _Tally:
    """Counts and durations of one answer.

    Args:
        prompt: Its prompt.
        progress: Its metrics.
        arrived: When the request arrived, by `time.perf_counter`.
    """

    def __init__(self, prompt: Prompt, progress: Progress, arrived: float) -> None:
        self._prompt = prompt
        self._progress = progress
        self._arrived = self._first = self._last = arrived
        self._prefilled = Prefilled(0.0, 0.0)
        self._drawn = 0
        self.limit: Limit | None = None
        """The limit that ended the answer, if any."""

    @property
    def begun(self) -> bool:
        """Whether there is a token."""
        return self._drawn > 0

    def prefill(self, prefilled: Prefilled) -> None:
        """Record the end of the prefill."""
        self._prefilled = prefilled
        self._progress.prefilled(len(self._prompt.token_ids), prefilled.cached_tokens, prefilled.queue_seconds)

    def token(self) -> None:
        """Record a token."""
        self._last = time.perf_counter()
        if self._drawn == 0:
            self._first = self._last
            self._progress.first_token(self._first - self._arrived)
        self._drawn += 1
        self._progress.token()

    def finish(self, reasoning_tokens: int, *, called: bool) -> Finished:
        """Record the end of the answer, and return the last event."""
        decode_seconds = self._last - self._first
        self._progress.finished(self._drawn, decode_seconds)
        prefilled, prompt = self._prefilled, self._prompt
        return Finished(
            FinishReason.STOP if self.limit is None else FinishReason.LENGTH,
            Usage(len(prompt.token_ids), self._drawn, prompt.media_tokens, prefilled.cached_tokens, reasoning_tokens),
            Timings(prefilled.queue_seconds, prefilled.prefill_seconds, decode_seconds, self._first - self._arrived),
            self.limit,
            called=called and self.limit is None,
        )


async def _next(events: AsyncGenerator[EngineEvent | None, None], until: float) -> EngineEvent | None:
    """The next event, or the end of the answer if none arrives until then."""
    if until == math.inf:
        return await anext(events)
    try:
        if asyncio.get_running_loop().time() >= until:  # also if events never have to be waited for
            raise TimeoutError
        async with asyncio.timeout_at(until):
            return await anext(events)
    except TimeoutError:
        return EngineFinished(FinishReason.LENGTH, Limit.DEADLINE)


@contextlib.asynccontextmanager
async def open_session(
    decoder: Decoder, opening: Opening, *, arrived: float, left: float = math.inf
) -> AsyncIterator[Session]:
    """Admit a request, and apply the chat template.

    Args:
        decoder: The loaded model.
        opening: The request.
        arrived: When it arrived, by `time.perf_counter`.
        left: Seconds until its deadline.

    Raises:
        ServiceError: RESOURCE_EXHAUSTED if the queue is full or too long for the deadline, or the text alone is too
            long; UNAVAILABLE if the engine is not ready; errors of
            `PromptBuilder.render` and `Constraints.compile`.
    """
    if not decoder.engine.ready:
        raise not_ready()
    decoder.greedy_thinking.check(_thinking(decoder, opening), opening.generation.sampling, opening.enable_thinking)
    choices = opening.generation.choices
    with decoder.admission.enter(choices, left=left) as place, Progress() as progress:
        rendered = await decoder.render(opening.messages, tools=opening.tools, enable_thinking=opening.enable_thinking)
        constraints = [await _constraint(decoder, opening, rendered) for _ in range(choices)]
        intake = FeatureIntake(
            decoder,
            rendered,
            opening.encoder_dtype,
            opening.generation.must_fit,
            place,
            cache_scope=opening.cache_scope,
        )
        yield Session(
            decoder,
            opening,
            rendered,
            intake,
            arrived=arrived,
            place=place,
            progress=progress,
            constraints=constraints,
        )


def _thinking(decoder: Decoder, opening: Opening) -> Thinking | None:
    """How the model thinks in the answer; None if it does not. What follows a raw prompt is all text."""
    return None if isinstance(opening.messages, RawPrompt) else decoder.prompts.thinking


async def _constraint(decoder: Decoder, opening: Opening, rendered: Rendered) -> Constraint | None:
    """The constraint of the answer: of the form that was asked for, and of tool calls."""
    try:
        form = opening.tools.form(opening.generation.form)
    except ValueError as error:
        raise invalid(_FORM, str(error)) from error
    if form is None:
        return None
    asked = form is opening.generation.form
    if not decoder.engine.info.constraints:
        path, what = (_FORM, "leave it unset") if asked else ("tools", "leave `strict` and `tool_choice` unset")
        raise unimplemented(path, f"{what}, or serve the model with --engine batch")
    try:
        constraint = await asyncio.to_thread(
            decoder.constraints.compile,
            form,
            force=opening.generation.sampling.logprobs is None,
            scope=opening.cache_scope,
        )
    except FormError as error:
        path, why = (f"{_FORM}.{form.kind}", str(error)) if asked else await _tool_at_fault(decoder, opening, error)
        raise invalid(path, f"cannot be compiled: {why}", reason=Reason.FORM_INVALID) from error
    thinking = _thinking(decoder, opening)
    if thinking is None or thinking.marks.closing is None or opening.enable_thinking is False:
        return constraint
    return AfterReasoning(
        constraint,
        thinking.marks,
        opened=rendered.opens_reasoning,
        vocabulary=decoder.model.vocab_size,
        end_tokens=decoder.model.end_tokens,
    )


async def _tool_at_fault(decoder: Decoder, opening: Opening, error: FormError) -> tuple[str, str]:
    """The path of the schema that cannot be compiled, and why: the error of all together names no tool."""
    for index, tool in enumerate(opening.tools.tools):
        try:
            form = Form("json_schema", tool.parameters or "{}")
            await asyncio.to_thread(decoder.constraints.compile, form, scope=opening.cache_scope)
        except FormError as its:
            return f"tools[{index}].parameters", str(its)
    return "tools", str(error)
