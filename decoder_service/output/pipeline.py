"""The output pipeline of an answer: tokens, text, reasoning and content, content without stop strings, events.

    TokenDrawn ──▶ Detokenizer ──▶ Reasoning ──▶ StopStrings ──▶ Delta
                                        └───────────────────────────┘

Only the content is searched for stop strings: a model repeats the question's words while it thinks, and an answer that
ended there would have no content. A parser of tool calls is a stage after the stop strings: it turns text into its own
events.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from decoder_service.engine import TokenDrawn
from decoder_service.output.detokenizer import Detokenizer, TokenBytes
from decoder_service.output.logprobs import Position, positions
from decoder_service.output.reasoning import Reasoning, Split
from decoder_service.output.repetition import Repetition
from decoder_service.output.stop_strings import StopStrings


@dataclass(frozen=True)
class Delta:
    """More of the answer: whole characters, and the tokens sampled since the last delta.

    Text and tokens need not correspond: withheld text is sent with a later token, or with none.

    Attributes:
        text: Whole characters.
        token_ids: Tokens.
        logprobs: One for each of the tokens, if requested.
        reasoning: Whole characters of the reasoning.
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[Position, ...] = ()
    reasoning: str = ""


class Output:
    """The pipeline of one answer.

    Args:
        tokens: Bytes of the tokens.
        end_tokens: Tokens that end the turn; they produce no text.
        stop: Strings before which the answer ends.
        reasoning: Splits reasoning and content; None: all is content.
        repetition: Detects a repetition; None: no detection.
    """

    def __init__(
        self,
        tokens: TokenBytes,
        *,
        end_tokens: Collection[int],
        stop: Sequence[str],
        reasoning: Reasoning | None = None,
        repetition: Repetition | None = None,
    ) -> None:
        self._tokens = tokens
        self._end_tokens = end_tokens
        self._detokenizer = Detokenizer(tokens)
        self._reasoning = reasoning
        self._stops = StopStrings(stop)
        self._repetition = repetition
        self._pushed = 0
        self.reasoning_tokens = 0
        """Tokens up to the end of the reasoning, marks included."""

    @property
    def ended(self) -> bool:
        """Whether a stop string or a repetition was found. Nothing may be pushed afterwards."""
        return self._stops.hit or self.in_circles

    @property
    def in_circles(self) -> bool:
        """Whether a repetition was found."""
        return self._repetition is not None and self._repetition.found

    def push(self, drawn: TokenDrawn) -> Iterator[Delta]:
        """Add a token, and yield the delta that can be sent."""
        if self._repetition is not None:
            self._repetition.push(drawn.token_id)
        split = self._split(drawn.token_id)
        scored = positions(drawn, self._tokens)
        yield Delta(self._stops.push(split.content), (drawn.token_id,), scored, split.reasoning)

    def finish(self) -> Iterator[Delta]:
        """Yield the withheld text at the end. To be called once, ended or not."""
        if self._stops.hit:
            return
        reasoning, content = self._split_text(self._detokenizer.flush())
        if self._reasoning is not None:
            rest = self._reasoning.flush()
            reasoning, content = reasoning + rest.reasoning, content + rest.content
        text = self._stops.push(content)
        text += self._stops.flush()
        if text or reasoning:
            yield Delta(text, (), reasoning=reasoning)

    def _split(self, token_id: int) -> Split:
        self._pushed += 1
        reasoning = self._reasoning
        if reasoning is None or reasoning.over:
            return self._split_text(self._text(token_id))
        if reasoning.is_mark(token_id):
            before = reasoning.push(self._detokenizer.flush())
            at = reasoning.mark()
            split = Split(before.reasoning + at.reasoning, before.content + at.content)
        else:
            split = reasoning.push(self._text(token_id))
        if reasoning.opened:
            self.reasoning_tokens = self._pushed
        return split

    def _split_text(self, text: str) -> Split:
        return Split("", text) if self._reasoning is None else self._reasoning.push(text)

    def _text(self, token_id: int) -> str:
        return "" if token_id in self._end_tokens else self._detokenizer.push(token_id)
