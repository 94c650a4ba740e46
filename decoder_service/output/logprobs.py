"""Log probabilities with the text of their tokens."""

from __future__ import annotations

from dataclasses import dataclass

from decoder_service.engine import TokenDrawn
from decoder_service.output.detokenizer import TokenBytes


@dataclass(frozen=True)
class ScoredToken:
    """A token and its log probability.

    Attributes:
        token_id: The token.
        text: Its text; the name of a control token; empty if its bytes are not whole characters.
        raw: Its bytes in the answer; none for a control token.
        logprob: Natural logarithm of its probability.
    """

    token_id: int
    text: str
    raw: bytes
    logprob: float


@dataclass(frozen=True)
class Position:
    """The sampled token, and the likeliest ones, most likely first."""

    chosen: ScoredToken
    top: tuple[ScoredToken, ...]


def positions(drawn: TokenDrawn, tokens: TokenBytes) -> tuple[Position, ...]:
    """One position for the sampled token; none if its log probability was not requested.

    Args:
        drawn: The engine's event.
        tokens: Bytes and names of the tokens.
    """
    if drawn.logprob is None:
        return ()

    def scored(token_id: int, logprob: float) -> ScoredToken:
        return ScoredToken(token_id, tokens.text(token_id), tokens[token_id], logprob)

    top = tuple(scored(other.token_id, other.logprob) for other in drawn.alternatives)
    return (Position(scored(drawn.token_id, drawn.logprob), top),)
