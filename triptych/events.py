"""What a client hears: the events of an answer, as plain values."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from vlm.v1 import chat_pb2


@dataclass(frozen=True)
class Usage:
    """Tokens that were counted."""

    prompt_tokens: int
    completion_tokens: int
    media_tokens: int
    cached_tokens: int


@dataclass(frozen=True)
class Timings:
    """Where the time went, in seconds."""

    queue_seconds: float
    vision_seconds: float
    prefill_seconds: float
    decode_seconds: float
    time_to_first_token_seconds: float


@dataclass(frozen=True)
class Started:
    """The prompt is laid out.

    Attributes:
        request_id: The request's id in every log.
        model: Who answers.
        prompt_tokens: Tokens of the prompt, media included.
        media_tokens: Of these, rows of image and video features.
        prompt_token_ids: The prompt itself, where it was asked for.
    """

    request_id: str
    model: str
    prompt_tokens: int
    media_tokens: int
    prompt_token_ids: tuple[int, ...]


@dataclass(frozen=True)
class TokenLogprob:
    """A token and its log probability.

    Attributes:
        token_id: The token.
        text: Its text; the name of a control token; empty where its bytes are a part of a character.
        logprob: Natural logarithm of its probability, before temperature, penalties and biases.
        raw: Its bytes in the answer; none for a control token.
    """

    token_id: int
    text: str
    logprob: float
    raw: bytes


@dataclass(frozen=True)
class PositionLogprobs:
    """The token that was drawn at one place, and the likeliest ones there, most likely first."""

    chosen: TokenLogprob
    top: tuple[TokenLogprob, ...]


@dataclass(frozen=True)
class Delta:
    """More of the answer: whole characters, and the tokens drawn since the last delta.

    Attributes:
        text: Whole characters. They may come later than the tokens that hold them.
        token_ids: Tokens.
        logprobs: One for each of the tokens, where they were asked for.
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[PositionLogprobs, ...] = ()


@dataclass(frozen=True)
class Finished:
    """The answer is complete. `reason` is `stop` or `length`."""

    reason: str
    usage: Usage
    timings: Timings


Event = Started | Delta | Finished


@dataclass(frozen=True)
class Answer:
    """A whole answer."""

    text: str
    token_ids: tuple[int, ...]
    prompt_token_ids: tuple[int, ...]
    finish_reason: str
    usage: Usage
    timings: Timings
    logprobs: tuple[PositionLogprobs, ...] = ()


def from_wire(event: chat_pb2.ChatEvent) -> Event | None:
    """An event as a value; None for a kind that this version of the client does not know."""
    match event.WhichOneof("event"):
        case "started":
            s = event.started
            return Started(s.request_id, s.model, s.prompt_tokens, s.media_tokens, tuple(s.prompt_token_ids))
        case "delta":
            logprobs = tuple(
                PositionLogprobs(_scored(p.chosen), tuple(map(_scored, p.top))) for p in event.delta.logprobs
            )
            return Delta(event.delta.text, tuple(event.delta.token_ids), logprobs)
        case "finished":
            f = event.finished
            reason = chat_pb2.FinishReason.Name(f.reason).removeprefix("FINISH_REASON_").lower()
            u, t = f.usage, f.timings
            return Finished(
                reason,
                Usage(u.prompt_tokens, u.completion_tokens, u.media_tokens, u.cached_tokens),
                Timings(
                    t.queue_seconds,
                    t.vision_seconds,
                    t.prefill_seconds,
                    t.decode_seconds,
                    t.time_to_first_token_seconds,
                ),
            )
    return None


def _scored(token: chat_pb2.TokenLogprob) -> TokenLogprob:
    return TokenLogprob(token.token_id, token.text, token.logprob, token.raw)


def gather(events: Iterable[Event]) -> Answer:
    """Put an answer together from its events.

    Raises:
        ValueError: The events end before the answer does.
    """
    prompt: tuple[int, ...] = ()
    text: list[str] = []
    tokens: list[int] = []
    logprobs: list[PositionLogprobs] = []
    for event in events:
        match event:
            case Started():
                prompt = event.prompt_token_ids
            case Delta():
                text.append(event.text)
                tokens += event.token_ids
                logprobs += event.logprobs
            case Finished():
                return Answer(
                    "".join(text), tuple(tokens), prompt, event.reason, event.usage, event.timings, tuple(logprobs)
                )
    raise ValueError("the events ended before the answer did")
