"""Listening to the engine's child."""

from __future__ import annotations

from dataclasses import dataclass, field

from decoder_service.engine.genai.engine import GenaiEngine, _Child
from decoder_service.engine.genai.messages import Ended, PromptPrefilled, Token, ToParent


@dataclass
class Heard:
    """All that the child has said since."""

    messages: list[ToParent] = field(default_factory=list)

    def tokens(self) -> dict[int, int]:
        """How many tokens were drawn for each request."""
        counts: dict[int, int] = {}
        for message in self.messages:
            if isinstance(message, Token):
                counts[message.job] = counts.get(message.job, 0) + 1
        return counts

    def prompts_read(self) -> set[int]:
        """The requests whose prefill was done."""
        return {m.job for m in self.messages if isinstance(m, PromptPrefilled)}

    def left_off(self) -> set[int]:
        """The requests that ended without a reason: called off, before or while they ran."""
        return {m.job for m in self.messages if isinstance(m, Ended) and m.reason is None and m.error is None}


def listen(engine: GenaiEngine) -> Heard:
    """Hear what the parent's side hears from now on."""
    heard, hear = Heard(), engine._on_message

    def listening(child: _Child, message: ToParent) -> None:
        heard.messages.append(message)
        hear(child, message)

    engine._on_message = listening  # type: ignore[method-assign]
    return heard
