"""Records the messages of the engine's child."""

from __future__ import annotations

from dataclasses import dataclass, field

from decoder_service.engine.genai.engine import GenaiEngine, _Child
from decoder_service.engine.genai.messages import Ended, PromptPrefilled, Token, ToParent


@dataclass
class Messages:
    """The messages of the child."""

    messages: list[ToParent] = field(default_factory=list)

    def tokens(self) -> dict[int, int]:
        """Number of generated tokens of each request."""
        counts: dict[int, int] = {}
        for message in self.messages:
            if isinstance(message, Token):
                counts[message.job] = counts.get(message.job, 0) + 1
        return counts

    def prompts_read(self) -> set[int]:
        """The requests whose prefill has finished."""
        return {m.job for m in self.messages if isinstance(m, PromptPrefilled)}

    def left_off(self) -> set[int]:
        """The requests that ended without a reason: cancelled before or while they ran."""
        return {m.job for m in self.messages if isinstance(m, Ended) and m.reason is None and m.error is None}


def listen(engine: GenaiEngine) -> Messages:
    """Record the messages that the parent receives from now on."""
    heard, hear = Messages(), engine._on_message

    def listening(child: _Child, message: ToParent) -> None:
        heard.messages.append(message)
        hear(child, message)

    engine._on_message = listening  # type: ignore[method-assign]
    return heard
