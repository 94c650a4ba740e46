"""What every engine does."""

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
"""Most alternatives that can be asked for beside a token."""


@dataclass(frozen=True)
class SamplingParams:
    """How one token is chosen.

    The logits are changed by the penalties, in the order in which they stand here, and by the bias; then divided by
    `temperature`; of the tokens `top_k` are kept, of these `top_p`, of these `min_p`; one of the rest is drawn.

    Attributes:
        temperature: 0 takes the likeliest token (greedy), and `top_p`, `top_k`, `min_p` and `seed` are of no account.
        top_p: The likeliest tokens whose probabilities reach this sum; 1 keeps all.
        top_k: The k likeliest tokens; 0 keeps all.
        seed: The same seed draws the same tokens from the same logits.
        min_p: Only tokens at least this many times as probable as the likeliest one; 0 keeps all.
        repetition_penalty: Logits of tokens of prompt and answer are divided by it where positive, else multiplied, as
            transformers does; 1 leaves them.
        presence_penalty: Taken from the logit of each token that the answer has.
        frequency_penalty: Taken from it once for each time that the answer has it.
        logit_bias: Added to the logits of these tokens.
        logprobs: How many alternatives to report beside each token, 0 to `MAX_LOGPROBS`; None: no log probabilities.
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


class FinishReason(enum.Enum):
    """Why an answer ended."""

    STOP = "stop"
    """One of the stop tokens was drawn; it is the last token."""
    LENGTH = "length"
    """A limit was reached."""


class Limit(enum.Enum):
    """Which limit ended an answer."""

    MAX_TOKENS = "max_tokens"
    """As many tokens as were asked for."""
    SERVER = "server"
    """The server's own bound on an answer whose request names none."""
    CONTEXT = "context"
    """Prompt and answer fill the context."""
    KV_CACHE = "kv_cache"
    """Prompt and answer fill the memory for keys and values."""
    DEADLINE = "deadline"
    """The time of the request was over."""


@dataclass(frozen=True, eq=False)
class EngineRequest:
    """A prompt to continue.

    Attributes:
        request_id: For logs.
        token_ids: The prompt, int32 [n], as the graphs take it.
        positions: Of each token and of the one after them, int64 [axes, n + 1]; an answer goes on from there by one on
            every axis.
        features: Rows for the tokens of media, in order, float32 [rows, width] each. One array may come twice. Those
            that are missing are put there while the engine has the request.
        media: Which tokens take a row of features, in order. A medium without a key is found in no cache, nor is what
            follows it.
        sampling: How tokens are chosen.
        max_new_tokens: Most tokens to write, at least 1. `n + max_new_tokens` must not pass the context.
        stop_token_ids: Tokens that end the answer.
        inputs: What an engine that computes positions itself takes instead of them: arrays by the names of its inputs.
        report_progress: Ask for `Prefilling` events.
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


@dataclass(frozen=True)
class Prefilling:
    """A part of the prompt has been read. Before `Prefilled`, where the request asks for it; not from every engine.

    Attributes:
        done: Tokens of the prompt that are computed or were found in a cache.
        total: Tokens of the prompt.
    """

    done: int
    total: int


@dataclass(frozen=True)
class Prefilled:
    """The prompt has been read; the first token follows.

    Attributes:
        queue_seconds: From `generate` to the start of the prefill, without waiting for features.
        prefill_seconds: From there to the logits of the last position, without waiting for features.
        cached_tokens: Tokens of the prompt that needed no computing.
    """

    queue_seconds: float
    prefill_seconds: float
    cached_tokens: int = 0


@dataclass(frozen=True)
class TokenLogprob:
    """A token and its log probability, by the model's own logits: before temperature, penalties and bias."""

    token_id: int
    logprob: float


@dataclass(frozen=True)
class TokenDrawn:
    """One more token.

    Attributes:
        token_id: Which.
        logprob: Its log probability, as in `TokenLogprob`; None where none was asked for.
        alternatives: The likeliest tokens, likeliest first, as many as were asked for; the one drawn may be among them.
    """

    token_id: int
    logprob: float | None = None
    alternatives: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class EngineFinished:
    """The last event.

    Attributes:
        reason: Why the answer ended.
        limit: Which limit it was, where that is not `max_new_tokens`.
    """

    reason: FinishReason
    limit: Limit | None = None


EngineEvent = Prefilling | Prefilled | TokenDrawn | EngineFinished


@dataclass(frozen=True)
class EngineInfo:
    """What an engine is.

    Attributes:
        name: `batch` or `genai`.
        provider: Execution provider, as in `cpu`.
        threads: Threads for one operator.
        slots: How many requests run at once; more wait.
        max_tokens: Most tokens of one prompt and its answer that its memory holds; None: no limit of its own.
    """

    name: str
    provider: str
    threads: int
    slots: int
    max_tokens: int | None = None


class Engine(Protocol):
    """Continues prompts. All methods belong to one event loop."""

    @property
    def info(self) -> EngineInfo:
        """What it is."""

    @property
    def ready(self) -> bool:
        """Whether a request made now would be taken up."""

    async def start(self, set_ready: Callable[[bool], None]) -> None:
        """Load and warm up. Returns when it is ready.

        Args:
            set_ready: Told, from the event loop, when it ceases to be ready and when it is so again.

        Raises:
            EngineError: It cannot.
        """

    def generate(self, request: EngineRequest) -> AsyncGenerator[EngineEvent, None]:
        """Continue a prompt: `Prefilled`, tokens, `EngineFinished`.

        The prompt may be read as far as its features are there; one whose features are missing is in nobody's way.

        The request takes its place in the queue, first come first served, when the first event is asked for. The queue
        has no limit of its own; who calls bounds it. Closing the generator (or cancelling who waits on it) takes the
        request out of the queue, or ends it within one step: a token, or the prefill that is running.

        Raises:
            ServiceError: UNAVAILABLE where the engine is not ready or was lost while it worked on this request;
                INTERNAL where this request failed and the engine goes on.
        """

    async def stop(self) -> None:
        """Give everything back. Requests that are left fail with UNAVAILABLE."""


class EngineError(Exception):
    """An engine cannot start: one sentence."""
