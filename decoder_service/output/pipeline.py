"""The output pipeline of an answer: tokens, text, reasoning and content, content without stop strings, events.

    TokenDrawn ──▶ Detokenizer ──▶ Reasoning ──▶ StopStrings ──▶ ToolCalls ──▶ Delta, ToolCallDelta
                                        └────────────────────────────────────────▲

Only the content is searched for stop strings: a model repeats the question's words while it thinks, and an answer that
ended there would have no content.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from decoder_service.engine import TokenDrawn
from decoder_service.output.detokenizer import Detokenizer, TokenBytes
from decoder_service.output.logprobs import Position, positions
from decoder_service.output.reasoning import Reasoning, Split
from decoder_service.output.repetition import Repetition
from decoder_service.output.stop_strings import StopStrings
from decoder_service.output.tool_calls import ToolCallDelta, ToolCalls


@dataclass(frozen=True)
class Delta:
    """More of the answer: whole characters, and the tokens sampled since the last delta.

    Text and tokens need not correspond: withheld text is sent with a later token, or with none.

    Attributes:
        text: Whole characters.
        token_ids: Tokens.
        logprobs: One for each of the tokens, if requested.
        reasoning: Whole characters of the reasoning.
        choice: Number of the answer.
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[Position, ...] = ()
    reasoning: str = ""
    choice: int = 0


class Output:
    """The pipeline of one answer.

    Args:
        tokens: Bytes of the tokens.
        end_tokens: Tokens that end the turn; they produce no text.
        stop: Strings before which the answer ends.
        reasoning: Splits reasoning and content; None: all is content.
        repetition: Detects a repetition; None: no detection.
        calls: Separates tool calls from the content; None: all is content.
    """

    def __init__(
        self,
        tokens: TokenBytes,
        *,
        end_tokens: Collection[int],
        stop: Sequence[str],
        reasoning: Reasoning | None = None,
        repetition: Repetition | None = None,
        calls: ToolCalls | None = None,
    ) -> None:
        self._tokens = tokens
        self._end_tokens = end_tokens
        self._detokenizer = Detokenizer(tokens)
        self._reasoning = reasoning
        self._stops = StopStrings(stop)
        self._repetition = repetition
        self._calls = calls
        self._pushed = 0
        self.reasoning_tokens = 0
        """Tokens up to the end of the reasoning, marks included."""

    @property
    def ended(self) -> bool:
        """Whether a stop string, a repetition or the only call was found. Nothing may be pushed afterwards."""
        return self._stops.hit or self.in_circles or (self._calls is not None and self._calls.over)

    @property
    def called(self) -> bool:
        """Whether the answer has a tool call."""
        return self._calls is not None and self._calls.count > 0

    @property
    def in_circles(self) -> bool:
        """Whether a repetition was found."""
        return self._repetition is not None and self._repetition.found

    def push(self, drawn: TokenDrawn) -> Iterator[Delta | ToolCallDelta]:
        """Add a token, and yield what can be sent: one delta with the token, and what follows it in the content."""
        if self._repetition is not None:
            self._repetition.push(drawn.token_id)
        split = self._split(drawn.token_id)
        scored = positions(drawn, self._tokens)
        pieces = self._pieces(self._stops.push(split.content))
        first = pieces[0] if pieces else ""
        text, rest = (first, pieces[1:]) if isinstance(first, str) else ("", pieces)
        yield Delta(text, (drawn.token_id,), scored, split.reasoning)
        yield from _deltas(rest)

    def finish(self) -> Iterator[Delta | ToolCallDelta]:
        """Yield what was withheld, at the end. To be called once, ended or not."""
        reasoning = text = ""
        if not self._stops.hit:
            reasoning, content = self._split_text(self._detokenizer.flush())
            if self._reasoning is not None:
                rest = self._reasoning.flush()
                reasoning, content = reasoning + rest.reasoning, content + rest.content
            text = self._stops.push(content) + self._stops.flush()
        if reasoning:
            yield Delta("", (), reasoning=reasoning)
        pieces = self._pieces(text)
        if self._calls is not None and not self._calls.over:
            pieces += self._calls.flush()
        yield from _deltas(pieces)

    def _pieces(self, text: str) -> list[str | ToolCallDelta]:
        if self._calls is None:
            return [text] if text else []
        return [] if self._calls.over else list(self._calls.push(text))

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


def _deltas(pieces: Iterable[str | ToolCallDelta]) -> Iterator[Delta | ToolCallDelta]:
    for piece in pieces:
        yield Delta(piece, ()) if isinstance(piece, str) else piece
