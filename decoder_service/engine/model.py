"""What computes, as those see it who decide what is to be computed."""

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
        slot: Where the request lies.
        start: How many of its tokens are computed.
        token_ids: The next ones, int32 [s].
        features: A row for each media token among them, float32 [f, width].
        positions: int64 [axes, s].
    """

    slot: int
    start: int
    token_ids: NDArray[np.int32]
    features: NDArray[np.float32]
    positions: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Step:
    """One token of each of several answers.

    Attributes:
        first_slot: Where the first request lies; the others lie in the slots after it.
        lengths: How many tokens of each are computed, int64 [n].
        token_ids: The next token of each, int32 [n].
        positions: Its position, the same on every axis, int64 [n].
    """

    first_slot: int
    lengths: NDArray[np.int64]
    token_ids: NDArray[np.int32]
    positions: NDArray[np.int64]


@dataclass(frozen=True)
class Shape:
    """What a request must agree with.

    Attributes:
        vocabulary: Token ids that the model knows: those below.
        feature_width: Numbers in a row of features.
        axes: Positions of one token.
    """

    vocabulary: int
    feature_width: int
    axes: int


class Model(Protocol):
    """Computes over keys and values that it keeps: prompts on one graph and answers on another, or both on one."""

    @property
    def together(self) -> bool:
        """Whether one graph computes both, so that a chunk can go beside a step and read no weights of its own."""

    @property
    def parts(self) -> int:
        """In how many parts a chunk that is alone is computed."""

    def decode(self, step: Step, piece: Piece | None = None) -> NDArray[np.float32]:
        """Compute a step of answers and, only where `together`, a chunk in the same run.

        Returns:
            For the caller to keep, float32 [n, vocab]: the logits after each answer's token, in their order, and after
            them those after the chunk's last token.
        """

    def prefill(self, piece: Piece, *, ends: bool = True) -> Iterator[NDArray[np.float32] | None]:
        """Compute a chunk by parts: one each time that the next value is asked for. Steps may come between them.

        Args:
            piece: The chunk. The row in which it lies must stay its own, and where it is, until all parts are computed.
            ends: Whether the logits after its last token are wanted.

        Yields:
            None after a part, and the logits, float32 [1, vocab], after the last one; they may come unasked.
        """
