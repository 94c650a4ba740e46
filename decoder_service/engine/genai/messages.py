"""The messages between the parent and the child of the genai engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from decoder_service.engine.interface import FinishReason, SamplingParams, TokenDrawn


@dataclass(frozen=True, eq=False)
class WorkerConfig:
    """What the child loads.

    Attributes:
        model_dir: Directory that onnxruntime-genai loads.
        provider: Execution provider.
        threads: Threads per operator.
        feature_width: Numbers in a row of features.
        inputs: `EngineRequest.inputs` of a prompt without media.
    """

    model_dir: str
    provider: str
    threads: int
    feature_width: int
    inputs: Mapping[str, NDArray[np.int64]]


@dataclass(frozen=True, eq=False)
class Run:
    """Parent to child: a request. Its arrays of features follow, one message of bytes each.

    Attributes:
        job: Number of the request.
        token_ids: int32 [n].
        feature_rows: Rows of each array that follows.
        inputs: As `EngineRequest.inputs`.
        sampling: Sampling parameters.
        max_new_tokens: Most tokens to generate.
        stop_token_ids: Tokens that end the answer.
    """

    job: int
    token_ids: NDArray[np.int32]
    feature_rows: tuple[int, ...]
    inputs: Mapping[str, NDArray[np.int64]]
    sampling: SamplingParams
    max_new_tokens: int
    stop_token_ids: frozenset[int]


@dataclass(frozen=True)
class Cancel:
    """Parent to child: cancel this request. It may have ended already."""

    job: int


@dataclass(frozen=True)
class Shutdown:
    """Parent to child: exit."""


@dataclass(frozen=True)
class Ready:
    """Child to parent, once: loaded and warm."""

    load_seconds: float


@dataclass(frozen=True)
class CannotLoad:
    """Child to parent, once, instead of `Ready`."""

    error: str


@dataclass(frozen=True)
class PromptPrefilled:
    """Child to parent: the prefill has finished."""

    job: int
    seconds: float


@dataclass(frozen=True)
class Token:
    """Child to parent: one more token."""

    job: int
    drawn: TokenDrawn


@dataclass(frozen=True)
class Ended:
    """Child to parent: this request has ended.

    Attributes:
        job: Number of the request.
        reason: Finish reason; None if it was cancelled or failed.
        error: The traceback of a failure.
    """

    job: int
    reason: FinishReason | None = None
    error: str | None = None


ToChild = Run | Cancel | Shutdown
ToParent = Ready | CannotLoad | PromptPrefilled | Token | Ended
