"""The interface of a model family in the decoder service."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from decoder_service.chat import Layout, MediaKind
from decoder_service.engine import Span

Encode = Callable[[str], Sequence[int]]
"""Function that returns the token ids of a text, without special tokens that the tokenizer adds."""


@dataclass(frozen=True, eq=False)
class Prompt:
    """A complete prompt.

    Attributes:
        token_ids: Token ids as transformers' processor returns them.
        engine_token_ids: Token ids as input of the graphs, int32 [n].
        positions: Positions of each token and of the one after them, int64 [axes, n + 1].
        media: The spans of tokens that take feature rows, in order.
        inputs: Inputs for an engine that computes positions itself; see `EngineRequest.inputs`. None: such an engine
            would compute other positions than these.
        media_tokens: Number of tokens that take feature rows.
    """

    token_ids: tuple[int, ...]
    engine_token_ids: NDArray[np.int32]
    positions: NDArray[np.int64]
    media: tuple[Span, ...]
    inputs: Mapping[str, NDArray[np.int64]] | None
    media_tokens: int


class Family(Protocol):
    """Lays out prompts of one model family. Without side effects; safe to call from several threads."""

    @property
    def placeholders(self) -> Mapping[int, MediaKind]:
        """The placeholder tokens, of which the chat template writes one for each medium."""

    @property
    def inline_placeholders(self) -> bool:
        """Whether a placeholder may be written among a message's text, where the chat template takes text only."""

    def token_count(self, grid: tuple[int, int, int]) -> int:
        """Number of feature rows of a medium.

        Args:
            grid: Its patches (t, h, w).

        Raises:
            ValueError: The grid is invalid; the message is an error of the field `grid_thw`.
        """

    def length(self, layout: Layout, encode: Encode) -> int:
        """Number of tokens that replace a medium's placeholder.

        Args:
            layout: Layout of the medium.
            encode: Tokenizes text that the family inserts.
        """

    def lay_out(
        self, token_ids: Sequence[int], layouts: Sequence[Layout], encode: Encode, keys: Sequence[str] = ()
    ) -> Prompt:
        """Replace each placeholder by the medium's tokens, and compute the position of each token.

        Args:
            token_ids: The conversation, with one placeholder for each medium.
            layouts: One for each medium, in order.
            encode: Tokenizes text that the family inserts.
            keys: Key of each medium's features, in order; empty if unknown.

        Raises:
            ValueError: A layout is inconsistent, or the number of layouts is not that of placeholders.
        """
