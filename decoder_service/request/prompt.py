"""From a conversation to token ids: the checkpoint's chat template, then a row for every feature.

The text that a person wrote can never become a control token: transformers marks the control tokens in it before the
template runs and encodes them as plain text after (`sanitize_control_tokens`). Placeholders are multiplied as ids,
after tokenization, so that what is counted and what is expanded is what the template wrote and nothing else.
"""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from decoder_service.chat import Layout, Medium, Message, Role, Text, media_of
from decoder_service.families.family import Family, Prompt
from serving.errors import Reason, failure, invalid

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Rendered:
    """A conversation as the template wrote it, with one placeholder for each medium.

    Attributes:
        token_ids: Ids, media still as single placeholders.
        media: The media, one for each placeholder, in order.
    """

    token_ids: tuple[int, ...]
    media: tuple[Medium, ...]


class PromptBuilder:
    """Lays out prompts. Its methods compute; call them off the event loop. Safe to call from several threads.

    Args:
        tokenizer: The checkpoint's, with its chat template. It is told to treat all its added tokens as control tokens.
        family: Lays its media out.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, family: Family) -> None:
        self._tokenizer = tokenizer
        self._family = family
        self._kinds = family.placeholders
        # Encoding passes through settings that the tokenizer holds, so callers take turns.
        self._lock = threading.Lock()
        # It would warn of prompts that are long for its own setting; the context is the service's affair.
        tokenizer.model_max_length = sys.maxsize
        # Left to itself transformers guards special tokens and those that the template names. A model may have learned
        # others (`<think>`): no text that came from outside may hold any.
        tokenizer.chat_control_tokens = [
            token.content for token in tokenizer.added_tokens_decoder.values() if not token.content.isspace()
        ]
        self._system_anywhere = _writes_system_anywhere(tokenizer)

    @classmethod
    def load(cls, directory: Path, family: Family) -> PromptBuilder:
        """Read tokenizer and chat template from a bundle's decoder directory."""
        from transformers import AutoTokenizer  # noqa: PLC0415  # a second to import; only who loads one pays

        tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(directory, local_files_only=True)  # type: ignore[assignment]  # checkpoints have no others
        return cls(tokenizer, family)

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer."""
        return self._tokenizer

    def render(self, messages: Sequence[Message]) -> Rendered:
        """Apply the chat template and tokenize; the answer begins where it ends.

        Where the last message is the assistant's, the answer goes on with it: the turn stays open. System messages may
        be anywhere (see `_placed`).

        Raises:
            ServiceError: INVALID_ARGUMENT where the template refuses the conversation; INTERNAL where it does not write
                one placeholder for each medium.
        """
        conversation = [_as_template_sees(message) for message in self._placed(messages)]
        goes_on = messages[-1].role is Role.ASSISTANT
        try:
            with self._lock:
                ids: list[int] = self._tokenizer.apply_chat_template(  # type: ignore[assignment]  # no dict was asked for
                    conversation,
                    tokenize=True,
                    return_dict=False,
                    add_generation_prompt=not goes_on,
                    continue_final_message=goes_on,
                    sanitize_control_tokens=True,
                )
        except (jinja2.TemplateError, ValueError) as error:  # the latter where the last message cannot be gone on with
            raise invalid(
                "messages", f"the model's chat template refuses them: {error}", reason=Reason.TEMPLATE_REFUSES
            ) from error
        media = media_of(messages)
        written = [self._kinds[token] for token in ids if token in self._kinds]
        if written != [medium.kind for medium in media]:
            raise failure(
                Reason.TEMPLATE_MISMATCH,
                f"the chat template wrote {len(written)} placeholders for {len(media)} media, or in another order",
            )
        return Rendered(tuple(ids), media)

    def _placed(self, messages: Sequence[Message]) -> Sequence[Message]:
        """The messages with those of the system where the template writes them.

        Those at the front become one. Later ones stay in their place where the template writes them there; most write
        none or drop them, and then they are added to the first.
        """
        front = list(itertools.takewhile(lambda message: message.role is Role.SYSTEM, messages))
        rest = messages[len(front) :]
        if not self._system_anywhere:
            front += [message for message in rest if message.role is Role.SYSTEM]
            rest = [message for message in rest if message.role is not Role.SYSTEM]
        if len(front) < 2:  # nothing to join
            return [*front, *rest]
        texts = ("".join(part.text for part in message.parts if isinstance(part, Text)) for message in front)
        return [Message(Role.SYSTEM, (Text("\n\n".join(texts)),)), *rest]

    def length(self, layout: Layout) -> int:
        """Tokens that a medium takes in the place of its placeholder."""
        return self._family.length(layout, self._encode)

    def expand(self, rendered: Rendered, layouts: Sequence[Layout], keys: Sequence[str] = ()) -> Prompt:
        """Give every medium its tokens.

        Args:
            rendered: The conversation.
            layouts: One for each medium, in order.
            keys: What names the features of each medium exactly, in order; none: nobody knows.
        """
        return self._family.lay_out(rendered.token_ids, layouts, self._encode, keys)

    def _encode(self, text: str) -> list[int]:
        with self._lock:
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids


def _writes_system_anywhere(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether the chat template writes a system message that comes after another message in its place."""
    roles = (Role.USER, Role.SYSTEM, Role.USER)
    marks = [f"probe-{number}" for number in range(len(roles))]
    probe = [{"role": role.value, "content": mark} for role, mark in zip(roles, marks, strict=True)]
    try:
        text = str(tokenizer.apply_chat_template(probe, tokenize=False))
    except jinja2.TemplateError:
        return False
    places = [text.find(mark) for mark in marks]
    return -1 not in places and places == sorted(places)


def _as_template_sees(message: Message) -> dict[str, Any]:
    """A message as chat templates read it.

    Neighbouring texts become one: cut in two, the name of a control token would escape the guard and be joined by the
    template. Where nothing is shown the content is a plain string, which templates of every age understand.
    """
    content: list[dict[str, str]] = []
    for is_text, run in itertools.groupby(message.parts, key=lambda part: isinstance(part, Text)):
        if is_text:
            text = "".join(part.text for part in run if isinstance(part, Text))
            content.append({"type": "text", "text": text})
        else:
            content += [{"type": part.kind.value} for part in run if isinstance(part, Medium)]
    if all(part["type"] == "text" for part in content):
        return {"role": message.role.value, "content": "".join(part["text"] for part in content)}
    return {"role": message.role.value, "content": content}
