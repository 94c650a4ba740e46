"""The interface between the scheduler and what runs the graphs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

ADAPTER_TOKENS = "adapter_tokens"
"""A graph's input, int64 [1, n, 2]: the tokens of requests that use its adapter, by row and place in the row."""

LONGEST_SHORT = "longest_short"
"""An entry of a graph's metadata: tokens of the longest sequence with the short frequencies of LongRoPE.

Position p of a longer sequence is row `longest_short` + p of the table of rotations.
"""


@dataclass(frozen=True, eq=False)
class Piece:
    """A chunk of one request's prompt.

    Attributes:
        slot: Index of the request's slot.
        start: Number of its computed tokens.
        token_ids: The next ones, int32 [s].
        features: The feature rows of the media tokens among them, float32 [f, width].
        positions: int64 [axes, s].
        adapted: Whether the request uses the model's adapter.
        generated: Number of its last tokens that are of the answer: text, even if the model has sampled a media token.
    """

    slot: int
    start: int
    token_ids: NDArray[np.int32]
    features: NDArray[np.float32]
    positions: NDArray[np.int64]
    adapted: bool = False
    generated: int = 0


@dataclass(frozen=True, eq=False)
class Step:
    """A decode step: one token of each of several requests.

    Attributes:
        first_slot: Index of the first request's slot; the others have the slots after it.
        lengths: Number of computed tokens of each, int64 [n].
        token_ids: The next token of each, int32 [n].
        positions: Its position, the same on every axis, int64 [n].
        adapted: Whether its request uses the model's adapter, bool [n]; None: none does.
    """

    first_slot: int
    lengths: NDArray[np.int64]
    token_ids: NDArray[np.int32]
    positions: NDArray[np.int64]
    adapted: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Shape:
    """Sizes of the model, against which requests are checked, and what depends on a request.

    Attributes:
        vocabulary: Size of the vocabulary; token ids are below it.
        feature_width: Width of a feature row.
        axes: Number of position axes.
        has_adapter: Whether requests with media use an adapter.
        longest_short: Tokens of the longest sequence with the short frequencies of LongRoPE; None: there is one set.
    """

    vocabulary: int
    feature_width: int
    axes: int
    has_adapter: bool = False
    longest_short: int | None = None

    def is_long(self, tokens: int) -> bool:
        """Whether all tokens of a sequence of `tokens` have the long frequencies."""
        return self.longest_short is not None and tokens > self.longest_short

    def rotations(self, positions: NDArray[np.int64], *, long: bool) -> NDArray[np.int64]:
        """The rows of positions in the table of rotations, of the same shape."""
        return positions + self.longest_short if long and self.longest_short is not None else positions


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
