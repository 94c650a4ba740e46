"""The content of a KV-cache slot, and the common prefix of two contents.

Keys and values of a token depend on all tokens before it and on nothing after it. Two prompts share them as far as
their tokens and the keys of their media are equal: all tokens of a medium have the same id, so its key decides. With an
adapter, or with other frequencies of the rotation, the same tokens have other keys and values from the first on.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from decoder_service.engine.media import Span


@dataclass(frozen=True, eq=False)
class Content:
    """Tokens in order, and which of them take features of media.

    Attributes:
        token_ids: int32 [n].
        media: The spans of media, with their keys.
        scope: Contents of different scopes share nothing, whatever their tokens.
        adapted: Whether all tokens are computed with the model's adapter; such contents share nothing with others.
        long: Whether all tokens have the long frequencies of LongRoPE; likewise.
    """

    token_ids: NDArray[np.int32]
    media: tuple[Span, ...] = ()
    scope: str = ""
    adapted: bool = False
    long: bool = False

    def __len__(self) -> int:
        return self.token_ids.size

    def followed_by(self, token_ids: list[int]) -> Content:
        """This content with generated text after it: a media token in the text takes no features."""
        return replace(self, token_ids=np.concatenate([self.token_ids, np.array(token_ids, np.int32)]))

    @property
    def comparable(self) -> int:
        """Number of tokens that can be compared with others: all before the first medium without a key."""
        return next((span.start for span in self.media if not span.key), len(self))


def common_prefix(one: Content, other: Content) -> int:
    """Number of tokens of the common prefix of two contents."""
    if (one.scope, one.adapted, one.long) != (other.scope, other.adapted, other.long):
        return 0
    count = min(one.comparable, other.comparable)
    differs = one.token_ids[:count] != other.token_ids[:count]
    if differs.any():
        count = int(differs.argmax())
    for mine, theirs in itertools.zip_longest(one.media, other.media):
        if mine != theirs:
            starts = [span.start for span in (mine, theirs) if span is not None]
            return min(count, *starts)
    return count
