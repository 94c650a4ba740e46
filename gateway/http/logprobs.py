"""Log probabilities in OpenAI's JSON."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from vlm.v1 import chat_pb2

_UNLIKELY = -9999.0
"""OpenAI's value: JSON has no infinity."""


def content(positions: Iterable[chat_pb2.PositionLogprobs]) -> list[dict[str, Any]]:
    """What `logprobs.content` holds of these positions: the tokens of the content.

    The token that ends the turn is none of them: joined, their bytes are the content, but for what a stop string cut.
    """
    return [
        {**_scored(position.chosen), "top_logprobs": [_scored(token) for token in position.top]}
        for position in positions
        if position.chosen.raw
    ]


def _scored(token: chat_pb2.TokenLogprob) -> dict[str, Any]:
    """A token, where its bytes are a part of a character with them escaped, as OpenAI shows it."""
    return {
        "token": token.text or "".join(f"\\x{byte:02x}" for byte in token.raw),
        "logprob": max(token.logprob, _UNLIKELY),
        "bytes": list(token.raw) if token.raw else None,
    }
