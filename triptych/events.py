"""The events of an answer as plain values."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from triptych.errors import incomplete
from triptych.tools import ToolCall
from vlm.v1 import chat_pb2, gateway_pb2, media_pb2


@dataclass(frozen=True)
class Usage:
    """Token counts.

    Attributes:
        prompt_tokens: Tokens of the prompt.
        completion_tokens: Tokens of the answer.
        media_tokens: Of the prompt, rows of image and video features.
        cached_tokens: Of the prompt, tokens found in the prefix cache.
        reasoning_tokens: Of the answer, tokens up to the end of the reasoning.
    """

    prompt_tokens: int
    completion_tokens: int
    media_tokens: int
    cached_tokens: int
    reasoning_tokens: int = 0


@dataclass(frozen=True)
class Timings:
    """Durations in seconds."""

    queue_seconds: float
    vision_seconds: float
    prefill_seconds: float
    decode_seconds: float
    time_to_first_token_seconds: float


@dataclass(frozen=True)
class MediaLayout:
    """The sizes of an image or a video, before and after preprocessing.

    Attributes:
        kind: `image` or `video`.
        size_given: Width and height of the picture, or of the video's frames, in the file, in pixels, upright.
        size_used: Width and height after resizing, in pixels.
        grid: Temporal patches (1 for an image), rows of patches and columns of patches.
        tokens: Number of its tokens in the prompt.
        frame_times: Of a video: the time of each sampled frame, in seconds. Empty for an image.
        timestamps: Of a video: the time of each temporal patch, in seconds, `grid[0]` of them. Empty for an image.
    """

    kind: Literal["image", "video"]
    size_given: tuple[int, int]
    size_used: tuple[int, int]
    grid: tuple[int, int, int]
    tokens: int
    frame_times: tuple[float, ...] = ()
    timestamps: tuple[float, ...] = ()


@dataclass(frozen=True)
class TokenCount:
    """The token count of a conversation.

    Attributes:
        prompt_tokens: Tokens of the prompt, including media.
        media_tokens: Tokens of images and videos among them.
        media: The layout of each image and video, in order of appearance.
    """

    prompt_tokens: int
    media_tokens: int
    media: tuple[MediaLayout, ...]


@dataclass(frozen=True)
class Accepted:
    """The gateway has received the whole request. The first event; only with `report_progress`.

    Attributes:
        request_id: The request's id in every log.
    """

    request_id: str


@dataclass(frozen=True)
class Started:
    """The prompt is laid out.

    Attributes:
        request_id: The request's id in every log.
        model: Name of the model.
        prompt_tokens: Tokens of the prompt, including media.
        media_tokens: Tokens of images and videos among them.
        prompt_token_ids: The ids of the prompt, if requested.
        media: The layout of each image and video, in order of appearance.
        max_tokens: Most tokens of the answer: `max_tokens` of the request, or what the tightest limit leaves.
    """

    request_id: str
    model: str
    prompt_tokens: int
    media_tokens: int
    prompt_token_ids: tuple[int, ...] = field(repr=False)
    media: tuple[MediaLayout, ...] = ()
    max_tokens: int = 0


Stage = Literal["queued", "encoding", "prefill"]


@dataclass(frozen=True)
class Progress:
    """Progress between `Started` and the first `Delta`, about once a second; only with `report_progress`.

    Attributes:
        stage: `queued`: waiting for a slot of the engine. `encoding`: its media are being encoded; counted in patches.
            `prefill`: its prompt is being computed; counted in tokens.
        done: Finished units of the stage.
        total: All units of the stage; 0 if unknown.
    """

    stage: Stage
    done: int
    total: int


@dataclass(frozen=True)
class TokenLogprob:
    """A token and its log probability.

    Attributes:
        token_id: The token.
        text: Its text; the name of a control token; empty if its bytes are only part of a character.
        logprob: Natural logarithm of its probability, before temperature, penalties and biases.
        raw: Its bytes in the answer; none for a control token.
    """

    token_id: int
    text: str
    logprob: float
    raw: bytes


@dataclass(frozen=True)
class PositionLogprobs:
    """The sampled token at one position, and the likeliest ones, most likely first."""

    chosen: TokenLogprob
    top: tuple[TokenLogprob, ...]


@dataclass(frozen=True)
class Delta:
    """More of the answer: whole characters, and the tokens sampled since the last delta.

    Attributes:
        text: Whole characters. They may be sent later than their tokens.
        token_ids: Tokens.
        logprobs: One for each of the tokens, if requested.
        reasoning: Whole characters of the reasoning, from a model that thinks before it answers.
        choice: Which of `n` answers, from 0.
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[PositionLogprobs, ...] = ()
    reasoning: str = ""
    choice: int = 0


@dataclass(frozen=True)
class ToolCallDelta:
    """More of a call of a tool.

    Attributes:
        index: Which call of the answer, from 0.
        id: The call's id; only in the first delta of a call.
        name: Name of the tool; only in the first delta of a call.
        arguments: More of the JSON text of the arguments.
        choice: Which of `n` answers, from 0.
    """

    index: int
    id: str
    name: str
    arguments: str
    choice: int = 0


@dataclass(frozen=True)
class Finished:
    """The answer is complete.

    Attributes:
        reason: `stop`, `tool_calls`, or `length` where a limit ended it.
        usage: What was counted.
        timings: Where the time went.
        limit: Which limit that was: `max_tokens`, `server` (its default bound), `context`, `kv_cache`, `deadline`,
            or `repetition`.
        choice: Which of `n` answers, from 0.
    """

    reason: str
    usage: Usage
    timings: Timings
    limit: str | None = None
    choice: int = 0


Event = Accepted | Started | Progress | Delta | ToolCallDelta | Finished


@dataclass(frozen=True)
class Answer:
    """A complete answer, with the fields of its events, and the calls of tools in it."""

    text: str
    token_ids: tuple[int, ...] = field(repr=False)
    prompt_token_ids: tuple[int, ...] = field(repr=False)
    finish_reason: str
    usage: Usage
    timings: Timings
    logprobs: tuple[PositionLogprobs, ...] = field(default=(), repr=False)
    media: tuple[MediaLayout, ...] = ()
    reasoning: str = ""
    finish_limit: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()


_STAGES: dict[int, Stage] = {
    chat_pb2.STAGE_QUEUED: "queued",
    chat_pb2.STAGE_ENCODING: "encoding",
    chat_pb2.STAGE_PREFILL: "prefill",
}


_REASONS = {n: name.removeprefix("FINISH_REASON_").lower() for name, n in chat_pb2.FinishReason.items()}
_LIMITS = {n: name.removeprefix("FINISH_LIMIT_").lower() for name, n in chat_pb2.FinishLimit.items() if n}


def from_wire(event: chat_pb2.ChatEvent) -> Event | None:
    """Convert an event; None for a kind that this version of the client does not know."""
    match event.WhichOneof("event"):
        case "started":
            s = event.started
            prompt = tuple(s.prompt_token_ids)
            media = tuple(map(_layout, s.media))
            return Started(s.request_id, s.model, s.prompt_tokens, s.media_tokens, prompt, media, s.max_tokens)
        case "progress":
            stage = _STAGES.get(event.progress.stage)
            return None if stage is None else Progress(stage, event.progress.done, event.progress.total)
        case "delta":
            logprobs = tuple(
                PositionLogprobs(_scored(p.chosen), tuple(map(_scored, p.top))) for p in event.delta.logprobs
            )
            d = event.delta
            return Delta(d.text, tuple(d.token_ids), logprobs, d.reasoning, event.choice)
        case "tool_call":
            c = event.tool_call
            return ToolCallDelta(c.index, c.id, c.name, c.arguments, event.choice)
        case "finished":
            f = event.finished
            u, t = f.usage, f.timings
            return Finished(
                _REASONS.get(f.reason, "unspecified"),
                Usage(u.prompt_tokens, u.completion_tokens, u.media_tokens, u.cached_tokens, u.reasoning_tokens),
                Timings(
                    t.queue_seconds,
                    t.vision_seconds,
                    t.prefill_seconds,
                    t.decode_seconds,
                    t.time_to_first_token_seconds,
                ),
                _LIMITS.get(f.limit),
                event.choice,
            )
    return None


def count_from_wire(reply: gateway_pb2.CountTokensResponse) -> TokenCount:
    """Convert a response of CountTokens."""
    return TokenCount(reply.prompt_tokens, reply.media_tokens, tuple(map(_layout, reply.media)))


def _layout(layout: media_pb2.MediaLayout) -> MediaLayout:
    given, used, grid = layout.size_given, layout.size_used, layout.grid_thw
    return MediaLayout(
        "video" if layout.kind == media_pb2.MEDIA_KIND_VIDEO else "image",
        (given.width, given.height),
        (used.width, used.height),
        (grid.t, grid.h, grid.w),
        layout.token_count,
        tuple(layout.frame_times),
        tuple(layout.timestamps),
    )


def _scored(token: chat_pb2.TokenLogprob) -> TokenLogprob:
    return TokenLogprob(token.token_id, token.text, token.logprob, token.raw)


def gather(events: Iterable[Event], n: int = 1) -> tuple[Answer, ...]:
    """Assemble the answers of a request from its events.

    Args:
        events: The events; those of several answers come in turns.
        n: How many answers there are.

    Raises:
        TriptychError: The events end without `Finished` of each.
    """
    started: Started | None = None
    parts: defaultdict[int, _Parts] = defaultdict(_Parts)  # the server bounds their number
    for event in events:
        match event:
            case Started():
                started = event
            case Delta() | ToolCallDelta() | Finished():
                parts[event.choice].add(event)
                if isinstance(event, Finished) and sum(each.finished is not None for each in parts.values()) == n:
                    return tuple(parts[choice].answer(started) for choice in range(n))
    raise incomplete()


class _Parts:
    """What has come of one answer."""

    def __init__(self) -> None:
        self.finished: Finished | None = None
        self._deltas: list[Delta] = []
        self._calls: dict[int, list[ToolCallDelta]] = {}

    def add(self, event: Delta | ToolCallDelta | Finished) -> None:
        """Take one more event of it."""
        match event:
            case Delta():
                self._deltas.append(event)
            case ToolCallDelta():
                self._calls.setdefault(event.index, []).append(event)
            case Finished():
                self.finished = event

    def answer(self, started: Started | None) -> Answer:
        """The whole answer. Raises TriptychError if it is not complete."""
        if self.finished is None:
            raise incomplete()
        return Answer(
            "".join(delta.text for delta in self._deltas),
            tuple(token for delta in self._deltas for token in delta.token_ids),
            started.prompt_token_ids if started else (),
            self.finished.reason,
            self.finished.usage,
            self.finished.timings,
            tuple(one for delta in self._deltas for one in delta.logprobs),
            started.media if started else (),
            "".join(delta.reasoning for delta in self._deltas),
            self.finished.limit,
            tuple(_call(self._calls[index]) for index in sorted(self._calls)),
        )


def _call(deltas: list[ToolCallDelta]) -> ToolCall:
    return ToolCall(deltas[0].id, deltas[0].name, "".join(delta.arguments for delta in deltas))
