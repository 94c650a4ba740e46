"""The interface of all engines."""

from __future__ import annotations

import enum
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from decoder_service.engine.features import FeatureRows
from decoder_service.engine.media import Span

MAX_LOGPROBS = 20
"""Most alternatives that a request may ask for with each token."""


@dataclass(frozen=True)
class SamplingParams:
    """Sampling parameters of one request.

    The penalties change the logits in the order given here, then the bias is added, then they are divided by
    `temperature`. `top_k`, `top_p` and `min_p` then filter the tokens, in this order; one of the rest is sampled.

    Attributes:
        temperature: 0 takes the likeliest token (greedy) and ignores `top_p`, `top_k`, `min_p` and `seed`.
        top_p: Keeps the likeliest tokens whose probabilities reach this sum; 1 keeps all.
        top_k: Keeps the k likeliest tokens; 0 keeps all.
        seed: The same seed draws the same tokens from the same logits.
        min_p: Keeps tokens at least this many times as probable as the likeliest one; 0 keeps all.
        repetition_penalty: Divides positive logits of tokens of prompt and answer, and multiplies negative ones, as
            transformers does; 1 disables it.
        presence_penalty: Subtracted from the logit of each token that the answer contains.
        frequency_penalty: Subtracted from it once for each occurrence.
        logit_bias: Added to the logits of these tokens.
        logprobs: Number of alternatives to report with each token, 0 to `MAX_LOGPROBS`; None: no log probabilities.
        min_tokens: Tokens of the answer before which no stop token is sampled, unless no other token is possible.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None
    min_tokens: int = 0


class ConstraintError(RuntimeError):
    """A constraint can go no further: its form is too complex, or a token was drawn that it does not allow."""


class Constraint(Protocol):
    """Which tokens of one answer may be drawn. Its state moves with every token. For the engine's thread."""

    def mask(self) -> NDArray[np.bool_]:
        """Tokens that may follow, bool [vocabulary]; at least one. Waits until it is computed.

        Raises:
            ConstraintError: It can go no further.
        """

    def forced(self) -> list[int]:
        """The tokens behind the one drawn last that have no alternative.

        They are part of the answer, and the next mask is of the token behind them. Waits until they are known, which
        takes much less time than a mask.

        Raises:
            ConstraintError: It can go no further.
        """

    def advance(self, token: int) -> None:
        """A token was drawn. Returns at once: what may follow it is computed beside the engine."""


class FinishReason(enum.Enum):
    """Why an answer ended."""

    STOP = "stop"
    """One of the stop tokens was sampled; it is the last token."""
    LENGTH = "length"
    """A limit was reached."""


class Limit(enum.Enum):
    """The limit that ended an answer."""

    MAX_TOKENS = "max_tokens"
    """The `max_tokens` of the request."""
    SERVER = "server"
    """The server's default, because the request has no `max_tokens`."""
    CONTEXT = "context"
    """Prompt and answer fill the context."""
    KV_CACHE = "kv_cache"
    """Prompt and answer fill the memory of the KV cache."""
    DEADLINE = "deadline"
    """The deadline of the request."""
    REPETITION = "repetition"
    """The answer repeated itself."""


@dataclass(frozen=True, eq=False)
class EngineRequest:
    """A prompt to continue.

    Attributes:
        request_id: For logs.
        token_ids: The prompt, int32 [n], as input of the graphs.
        positions: Positions of each token and of the one after them, int64 [axes, n + 1]; each token of the answer is
            one further on every axis.
        features: Feature rows for the media tokens, in order, arrays of float32 [rows, width]. An array may be there
            twice. Missing ones are put while the engine has the request.
        media: The spans of tokens that take feature rows, in order. The prefix cache holds nothing from the first
            medium without a key on.
        sampling: Sampling parameters.
        max_new_tokens: Most tokens to generate, at least 1. `n + max_new_tokens` must not exceed the context.
        stop_token_ids: Tokens that end the answer.
        inputs: For an engine that computes positions itself: arrays by the names of its inputs.
        report_progress: Whether to send `Prefilling` events.
        constraint: Which tokens may be drawn; None: all. Not for every engine (see `EngineInfo.constraints`).
        cache_scope: The prefix cache is shared only by requests with the same one.
    """

    request_id: str
    token_ids: NDArray[np.int32]
    positions: NDArray[np.int64]
    features: FeatureRows
    media: tuple[Span, ...]
    sampling: SamplingParams
    max_new_tokens: int
    stop_token_ids: frozenset[int]
    inputs: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
    report_progress: bool = False
    constraint: Constraint | None = None
    cache_scope: str = ""


@dataclass(frozen=True)
class Prefilling:
    """Progress of the prefill. Before `Prefilled`, if the request asks for it; not sent by every engine.

    Attributes:
        done: Tokens of the prompt that are computed or were found in the prefix cache.
        total: Tokens of the prompt.
    """

    done: int
    total: int


@dataclass(frozen=True)
class Prefilled:
    """The prefill has finished; the first token follows.

    Attributes:
        queue_seconds: From `generate` to the start of the prefill, without waiting for features.
        prefill_seconds: From there to the logits of the last position, without waiting for features.
        cached_tokens: Tokens of the prompt that were found in the prefix cache.
    """

    queue_seconds: float
    prefill_seconds: float
    cached_tokens: int = 0


@dataclass(frozen=True)
class TokenLogprob:
    """A token and its log probability by the model's logits, before temperature, penalties and bias."""

    token_id: int
    logprob: float


@dataclass(frozen=True)
class TokenDrawn:
    """One more token.

    Attributes:
        token_id: Id of the token.
        logprob: Its log probability, as in `TokenLogprob`; None if not requested.
        alternatives: The likeliest tokens, likeliest first, as many as requested; may contain the sampled one.
    """

    token_id: int
    logprob: float | None = None
    alternatives: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class EngineFinished:
    """The last event.

    Attributes:
        reason: Why the answer ended.
        limit: The limit that ended it, if that is not `max_new_tokens`.
    """

    reason: FinishReason
    limit: Limit | None = None


EngineEvent = Prefilling | Prefilled | TokenDrawn | EngineFinished


@dataclass(frozen=True)
class EngineInfo:
    """Description of an engine.

    Attributes:
        name: `batch` or `genai`.
        provider: Execution provider, as in `cpu`.
        threads: Threads per operator.
        slots: Most requests that run at once; more wait.
        max_tokens: Most tokens of a prompt and its answer that fit its memory; None: no limit of its own.
        constraints: Whether it supports a request's constraint.
        own_positions: Whether it computes positions itself, from `EngineRequest.inputs`.
    """

    name: str
    provider: str
    threads: int
    slots: int
    max_tokens: int | None = None
    constraints: bool = False
    own_positions: bool = False


class Engine(Protocol):
    """Continues prompts. All methods belong to one event loop."""

    @property
    def info(self) -> EngineInfo:
        """Description of the engine."""

    @property
    def ready(self) -> bool:
        """Whether a new request would be accepted."""

    async def start(self, set_ready: Callable[[bool], None]) -> None:
        """Load and warm up. Returns when it is ready.

        Args:
            set_ready: Called on the event loop when the engine stops being ready and when it is ready again.

        Raises:
            EngineError: It cannot be loaded.
        """

    def generate(self, request: EngineRequest) -> AsyncGenerator[EngineEvent, None]:
        """Continue a prompt: `Prefilled`, tokens, `EngineFinished`.

        The prompt may be prefilled as far as its features have arrived; a request that waits for features does not
        block others.

        The request enters the queue, first come first served, when the first event is awaited. The queue has no limit
        of its own; the caller bounds it. Closing the generator, or cancelling the task that waits for it, removes the
        request from the queue, or ends it within one step: a token, or the running prefill.

        Raises:
            ServiceError: UNAVAILABLE if the engine is not ready or fails during this request; INTERNAL if only this
                request fails.
        """

    async def stop(self) -> None:
        """Stop and free all resources. Unfinished requests fail with UNAVAILABLE."""


class EngineError(Exception):
    """An engine cannot start. The message is one sentence."""
