"""What every engine does."""

from __future__ import annotations

import enum
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class SamplingParams:
    """How one token is chosen: divide the logits by `temperature`, keep `top_k`, of these keep `top_p`, draw.

    Attributes:
        temperature: 0 takes the likeliest token (greedy), and the rest is of no account.
        top_p: The likeliest tokens whose probabilities reach this sum; 1 keeps all.
        top_k: The k likeliest tokens; 0 keeps all.
        seed: The same seed draws the same tokens from the same logits.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0


class FinishReason(enum.Enum):
    """Why an answer ended."""

    STOP = "stop"
    """One of the stop tokens was drawn; it is the last token."""
    LENGTH = "length"
    """As many tokens as were asked for."""


@dataclass(frozen=True, eq=False)
class EngineRequest:
    """A prompt to continue.

    Attributes:
        request_id: For logs.
        token_ids: The prompt, int32 [n]. The image token stands at every row of features, for video frames, too.
        features: Rows for the image tokens, in order, float32 [rows, (1 + L) x hidden] each. One array may come twice.
        grids: Patches (t, h, w) of every image and every video frame, int64 [m, 3], in order; t is 1.
        sampling: How tokens are chosen.
        max_new_tokens: Most tokens to write, at least 1. `n + max_new_tokens` must not pass the context.
        stop_token_ids: Tokens that end the answer.
    """

    request_id: str
    token_ids: NDArray[np.int32]
    features: tuple[NDArray[np.float32], ...]
    grids: NDArray[np.int64]
    sampling: SamplingParams
    max_new_tokens: int
    stop_token_ids: frozenset[int]


@dataclass(frozen=True)
class Prefilled:
    """The prompt has been read; the first token follows.

    Attributes:
        queue_seconds: From `generate` to the start of the prefill.
        prefill_seconds: From there to the logits of the last position.
        cached_tokens: Tokens of the prompt that needed no computing.
    """

    queue_seconds: float
    prefill_seconds: float
    cached_tokens: int = 0


@dataclass(frozen=True)
class TokenDrawn:
    """One more token."""

    token_id: int


@dataclass(frozen=True)
class EngineFinished:
    """The last event."""

    reason: FinishReason


EngineEvent = Prefilled | TokenDrawn | EngineFinished


@dataclass(frozen=True)
class EngineInfo:
    """What an engine is.

    Attributes:
        name: `genai`.
        provider: Execution provider, as in `cpu`.
        threads: Threads for one operator.
        slots: How many requests run at once; more wait.
    """

    name: str
    provider: str
    threads: int
    slots: int


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
