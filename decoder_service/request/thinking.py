"""Whether a model thinks before it answers, and whether it can be told not to: its chat template says so.

A vocabulary with marks is no sign: the published tokenizers have them whether the model thinks or not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jinja2
import structlog

from decoder_service.engine import SamplingParams
from decoder_service.output.reasoning import CLOSING, OPENING, Marks
from serving.errors import Reason, invalid

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

log = structlog.get_logger()

REASONING = "reasoning_content"
"""What templates call the reasoning of a message that comes apart from its content."""


@dataclass(frozen=True)
class Thinking:
    """How a model thinks.

    Attributes:
        marks: Around its reasoning.
        optional: Whether the template takes `enable_thinking`.
    """

    marks: Marks
    optional: bool

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerFast) -> Thinking | None:
        """What the chat template says: None where it names neither mark, since the model does not think then."""
        template = tokenizer.chat_template
        if not isinstance(template, str) or not (OPENING in template or CLOSING in template):
            return None
        return cls(Marks.of(tokenizer.backend_tokenizer), _has_choice(tokenizer))


class GreedyThinking:
    """Warns in the log, once, where a model that thinks is asked greedily."""

    def __init__(self) -> None:
        self._warned = False

    def check(self, thinking: Thinking | None, sampling: SamplingParams, enable_thinking: bool | None) -> None:
        """Look at a request.

        Args:
            thinking: How the model thinks; None where it does not.
            sampling: How the answer is drawn.
            enable_thinking: What the request says; None where it says nothing.
        """
        if thinking is None or enable_thinking is False or sampling.temperature > 0 or self._warned:
            return
        self._warned = True
        log.warning(
            "a model that thinks is asked greedily, and may think in circles to the last token",
            instead="generation_config=auto, or recommended_sampling in the request",
        )


def apply(
    tokenizer: PreTrainedTokenizerFast,
    conversation: Sequence[Mapping[str, Any]],
    goes_on: bool | str = False,
    **choice: Any,
) -> str:
    """Apply the chat template; the answer begins where the chat ends.

    Args:
        tokenizer: Has the template.
        conversation: The messages, as it takes them.
        goes_on: Whether the answer goes on with the last message, or the name of its part that it goes on with.
        choice: What else it takes.

    Raises:
        jinja2.TemplateError: It refuses them.
        ValueError: It does not write the last message so that it could be gone on with.
    """
    chat: str = tokenizer.apply_chat_template(  # type: ignore[assignment]  # no ids were asked for
        [dict(message) for message in conversation],
        tokenize=False,
        add_generation_prompt=not goes_on,
        continue_final_message=goes_on,
        **choice,
    )
    return chat


def template_choice(thinking: Thinking | None, enable_thinking: bool | None) -> dict[str, bool]:
    """What the template is told.

    A model that always thinks may be asked to think, and one that never does may be asked not to.

    Args:
        thinking: How the model thinks; None where it does not.
        enable_thinking: What the request says; None where it says nothing.

    Raises:
        ServiceError: INVALID_ARGUMENT where the request asks for what the template cannot do.
    """
    if enable_thinking is None:
        return {}
    if thinking is not None and thinking.optional:
        return {"enable_thinking": enable_thinking}
    if enable_thinking != (thinking is not None):
        why = "this model always thinks" if thinking else "this model does not think"
        asked = str(enable_thinking).lower()
        raise invalid("enable_thinking", f"is {asked}, and {why}: leave it out", reason=Reason.THINKING_NOT_OPTIONAL)
    return {}


def _has_choice(tokenizer: PreTrainedTokenizerFast) -> bool:
    question = [{"role": "user", "content": "?"}]
    try:
        chats = {apply(tokenizer, question, enable_thinking=choice) for choice in (True, False)}
    except jinja2.TemplateError:  # it refuses so short a conversation, and the request will say why
        return False
    return len(chats) == 2
