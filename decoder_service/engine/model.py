"""The interface between the scheduler and what runs the graphs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Piece:
    """A chunk of one request's prompt.

    Attributes:
        slot: Index of the request's slot.
        start: Number of its computed tokens.
        token_ids: The next ones, int32 [s].
        features: The feature rows of the media tokens among them, float32 [f, width].
        positions: int64 [axes, s].
    """

    slot: int
    start: int
    token_ids: NDArray[np.int32]
    features: NDArray[np.float32]
    positions: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Step:
    """A decode step: one token of each of several requests.

    Attributes:
        first_slot: Index of the first request's slot; the others have the slots after it.
        lengths: Number of computed tokens of each, int64 [n].
        token_ids: The next token of each, int32 [n].
        positions: Its position, the same on every axis, int64 [n].
    """

    first_slot: int
    lengths: NDArray[np.int64]
    token_ids: NDArray[np.int32]
    positions: NDArray[np.int64]


@dataclass(frozen=True)
class Shape:
    """Sizes of the model, against which requests are checked.

    Attributes:
        vocabulary: Size of the vocabulary; token ids are below it.
        feature_width: Width of a feature row.
        axes: Number of position axes.
    """

    vocabulary: int
    feature_width: int
    axes: int


class Model(Protocol):
    """Runs graphs over a KV cache: one for prefill and another for decode, or the same for both."""

    @property
    def together(self) -> bool:
        """Whether one graph computes both phases, so that one run can decode and prefill and reads the weights once."""

    @property
    def parts(self) -> int:
        """Number of parts in which a prefill chunk is computed."""

    def decode(self, step: Step | None, piece: Piece | None = None) -> NDArray[np.float32]:
        """Run a decode step, and in the same run known tokens of an answer or, only if `together`, a prefill chunk.

        Args:
            step: The decode step; None for known tokens alone.
            piece: The known tokens, or the chunk.

        Returns:
            Logits, float32 [n, vocab], owned by the caller: of each token of the step, in order, then of the last token
            of `piece`.
        """

    def prefill(self, piece: Piece, *, ends: bool = True) -> Iterator[NDArray[np.float32] | None]:
        """Prefill a chunk part by part, one for each `next`. Decode steps may run between parts.

        Args:
            piece: The chunk. Its slot must not be moved or freed until all parts are computed.
            ends: Whether the logits of its last token are needed.

        Yields:
            None after a part; after the last one the logits, float32 [1, vocab], which may be given without need.
        """
