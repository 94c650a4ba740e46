"""What the decoder service asks of a model family."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from decoder_service.chat import Layout, MediaKind
from decoder_service.engine import Span

Encode = Callable[[str], Sequence[int]]
"""Token ids of a text, without any that the tokenizer would add."""


@dataclass(frozen=True, eq=False)
class Prompt:
    """A prompt, laid out.

    Attributes:
        token_ids: As transformers' processor gives them.
        engine_token_ids: The same as the graphs take them, int32 [n].
        positions: Of each token and of the one after them, int64 [axes, n + 1].
        media: Where the rows of features go, in order.
        inputs: What a whole model beside the graphs takes of this family; see `EngineRequest.inputs`.
        media_tokens: How many of the tokens are rows of features.
    """

    token_ids: tuple[int, ...]
    engine_token_ids: NDArray[np.int32]
    positions: NDArray[np.int64]
    media: tuple[Span, ...]
    inputs: Mapping[str, NDArray[np.int64]]
    media_tokens: int


class Family(Protocol):
    """Lays out prompts of one model family. Pure, and safe to call from several threads."""

    @property
    def placeholders(self) -> Mapping[int, MediaKind]:
        """The tokens of which the chat template writes one for each medium."""

    def length(self, layout: Layout, encode: Encode) -> int:
        """Tokens that a medium takes in the place of its placeholder.

        Args:
            layout: Of the medium.
            encode: Tokenizes text that the family writes itself.
        """

    def lay_out(
        self, token_ids: Sequence[int], layouts: Sequence[Layout], encode: Encode, keys: Sequence[str] = ()
    ) -> Prompt:
        """Give every medium its tokens, and every token its position.

        Args:
            token_ids: The conversation, with one placeholder for each medium.
            layouts: One for each medium, in order.
            encode: Tokenizes text that the family writes itself.
            keys: What names the features of each medium exactly, in order; none: nobody knows.

        Raises:
            ValueError: A layout does not agree with itself, or there are not as many as placeholders.
        """
