"""Whether a model thinks before it answers, and whether a request can choose: both follow from the chat template.

The vocabulary does not show it: the published tokenizers have the marks whether the model thinks or not.
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
"""The field of a message in chat templates that has its reasoning."""


@dataclass(frozen=True)
class Thinking:
    """How a model thinks.

    Attributes:
        marks: The marks around its reasoning.
        optional: Whether the template supports `enable_thinking`.
    """

    marks: Marks
    optional: bool

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerFast) -> Thinking | None:
        """Read it from the chat template; None if the template has neither mark."""
        template = tokenizer.chat_template
        if not isinstance(template, str) or not (OPENING in template or CLOSING in template):
            return None
        return cls(Marks.of(tokenizer.backend_tokenizer), _has_choice(tokenizer))


class GreedyThinking:
    """Warns once in the log if a model that thinks is sampled greedily."""

    def __init__(self) -> None:
        self._warned = False

    def check(self, thinking: Thinking | None, sampling: SamplingParams, enable_thinking: bool | None) -> None:
        """Check a request.

        Args:
            thinking: How the model thinks; None if it does not.
            sampling: The request's sampling parameters.
            enable_thinking: The request's choice; None if it has none.
        """
        if thinking is None or enable_thinking is False or sampling.temperature > 0 or self._warned:
            return
        self._warned = True
        log.warning(
            "a model that thinks is sampled greedily, and may repeat itself up to max_tokens",
            instead="generation_config=auto, or recommended_sampling in the request",
        )


def apply(
    tokenizer: PreTrainedTokenizerFast,
    conversation: Sequence[Mapping[str, Any]],
    continued: bool | str = False,
    **choice: Any,
) -> str:
    """Apply the chat template.

    Args:
        tokenizer: Has the template.
        conversation: The messages, in the form of chat templates.
        continued: Whether the answer continues the last message, or the name of the field that it continues.
        choice: Other variables of the template.

    Raises:
        jinja2.TemplateError: The template refuses the messages.
        ValueError: The last message cannot be continued.
    """
    chat: str = tokenizer.apply_chat_template(  # type: ignore[assignment]  # no ids were asked for
        [dict(message) for message in conversation],
        tokenize=False,
        add_generation_prompt=not continued,
        continue_final_message=continued,
        **choice,
    )
    return chat


def template_choice(thinking: Thinking | None, enable_thinking: bool | None) -> dict[str, bool]:
    """The template's variables for a request's choice.

    If the template does not support the choice, only the value that describes the model is accepted.

    Args:
        thinking: How the model thinks; None if it does not.
        enable_thinking: The request's choice; None if it has none.

    Raises:
        ServiceError: INVALID_ARGUMENT if the template does not support the choice.
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
    except jinja2.TemplateError:  # the requests will show why
        return False
    return len(chats) == 2
