"""From a conversation to token ids: the checkpoint's chat template, then a token for every feature row.

User text can never become a control token: transformers marks the control tokens in it before the template runs and
encodes them as plain text afterwards (`sanitize_control_tokens`). Placeholders are expanded as ids, after tokenization,
so that only placeholders written by the template are counted and expanded.
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
    """A tokenized conversation with one placeholder for each medium.

    Attributes:
        token_ids: Token ids, with one placeholder for each medium.
        media: The media, one for each placeholder, in order.
    """

    token_ids: tuple[int, ...]
    media: tuple[Medium, ...]


class PromptBuilder:
    """Builds prompts. Its methods block, so call them off the event loop. Safe to call from several threads.

    Args:
        tokenizer: The checkpoint's, with its chat template. All its added tokens are set to be control tokens.
        family: Lays out the media.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, family: Family) -> None:
        self._tokenizer = tokenizer
        self._family = family
        self._kinds = family.placeholders
        # Encoding changes settings of the tokenizer, so calls are serialized.
        self._lock = threading.Lock()
        # Disables its warning about long prompts; the service checks the context itself.
        tokenizer.model_max_length = sys.maxsize
        # By default transformers sanitizes special tokens and those named in the template. A model may have learned
        # others (`<think>`), which user text must not contain either.
        tokenizer.chat_control_tokens = [
            token.content for token in tokenizer.added_tokens_decoder.values() if not token.content.isspace()
        ]
        self._system_anywhere = _writes_system_anywhere(tokenizer)

    @classmethod
    def load(cls, directory: Path, family: Family) -> PromptBuilder:
        """Read tokenizer and chat template from a bundle's decoder directory."""
        from transformers import AutoTokenizer  # noqa: PLC0415  # takes a second to import

        tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(directory, local_files_only=True)  # type: ignore[assignment]  # checkpoints have no other type
        return cls(tokenizer, family)

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer."""
        return self._tokenizer

    def render(self, messages: Sequence[Message]) -> Rendered:
        """Apply the chat template, with its generation prompt, and tokenize.

        If the last message is the assistant's, the answer continues it: the turn stays open. System messages may be
        anywhere (see `_placed`).

        Raises:
            ServiceError: INVALID_ARGUMENT if the template refuses the conversation; INTERNAL if it does not write one
                placeholder for each medium.
        """
        conversation = [_template_message(message) for message in self._placed(messages)]
        continues = messages[-1].role is Role.ASSISTANT
        try:
            with self._lock:
                ids: list[int] = self._tokenizer.apply_chat_template(  # type: ignore[assignment]  # return_dict is not set
                    conversation,
                    tokenize=True,
                    return_dict=False,
                    add_generation_prompt=not continues,
                    continue_final_message=continues,
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
        """The messages, with system messages at places that the template supports.

        Those at the front are joined. Later ones stay in place if the template supports that. Most templates refuse or
        drop them, so they are then appended to the first one.
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

    def token_count(self, grid: tuple[int, int, int]) -> int:
        """Number of feature rows of a medium; see `Family.token_count`."""
        return self._family.token_count(grid)

    def length(self, layout: Layout) -> int:
        """Number of tokens that replace a medium's placeholder."""
        return self._family.length(layout, self._encode)

    def expand(self, rendered: Rendered, layouts: Sequence[Layout], keys: Sequence[str] = ()) -> Prompt:
        """Replace each placeholder by the medium's tokens.

        Args:
            rendered: The conversation.
            layouts: One for each medium, in order.
            keys: Key of each medium's features, in order; empty if unknown.
        """
        return self._family.lay_out(rendered.token_ids, layouts, self._encode, keys)

    def _encode(self, text: str) -> list[int]:
        with self._lock:
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids


def _writes_system_anywhere(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether the chat template writes a system message after another message in its place."""
    roles = (Role.USER, Role.SYSTEM, Role.USER)
    marks = [f"probe-{number}" for number in range(len(roles))]
    probe = [{"role": role.value, "content": mark} for role, mark in zip(roles, marks, strict=True)]
    try:
        text = str(tokenizer.apply_chat_template(probe, tokenize=False))
    except jinja2.TemplateError:
        return False
    places = [text.find(mark) for mark in marks]
    return -1 not in places and places == sorted(places)


def _template_message(message: Message) -> dict[str, Any]:
    """A message in the form of chat templates.

    Adjacent texts are joined: otherwise the name of a control token, split in two, would not be sanitized, and the
    template would join it. The content of a message without media is a plain string, which all templates support.
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
