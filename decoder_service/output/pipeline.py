"""The output pipeline of an answer: tokens, text, text without stop strings, events.

    TokenDrawn ──▶ Detokenizer ──▶ StopStrings ──▶ Delta

A parser of tool calls or of reasoning is a stage after the stop strings: it turns text into its own events.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from decoder_service.engine import TokenDrawn
from decoder_service.output.detokenizer import Detokenizer, TokenBytes
from decoder_service.output.logprobs import Position, positions
from decoder_service.output.stop_strings import StopStrings


@dataclass(frozen=True)
class Delta:
    """More of the answer: whole characters, and the tokens sampled since the last delta.

    Text and tokens need not correspond: withheld text is sent with a later token, or with none.

    Attributes:
        text: Whole characters.
        token_ids: Tokens.
        logprobs: One for each of the tokens, if requested.
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[Position, ...] = ()


class Output:
    """The pipeline of one answer.

    Args:
        tokens: Bytes of the tokens.
        end_tokens: Tokens that end the turn; they produce no text.
        stop: Strings before which the answer ends.
    """

    def __init__(self, tokens: TokenBytes, *, end_tokens: Collection[int], stop: Sequence[str]) -> None:
        self._tokens = tokens
        self._end_tokens = end_tokens
        self._detokenizer = Detokenizer(tokens)
        self._stops = StopStrings(stop)

    @property
    def stopped(self) -> bool:
        """Whether a stop string was found. Nothing may be pushed afterwards."""
        return self._stops.hit

    def push(self, drawn: TokenDrawn) -> Iterator[Delta]:
        """Add a token, and yield the delta that can be sent."""
        text = self._detokenizer.push(drawn.token_id) if drawn.token_id not in self._end_tokens else ""
        yield Delta(self._stops.push(text), (drawn.token_id,), positions(drawn, self._tokens))

    def finish(self) -> Iterator[Delta]:
        """Yield the withheld text at the end. To be called once, stopped or not."""
        if self.stopped:
            return
        text = self._stops.push(self._detokenizer.flush())
        if rest := text + self._stops.flush():
            yield Delta(rest, ())
