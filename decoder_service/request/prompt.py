"""From a conversation to token ids: the checkpoint's chat template, then a token for every feature row.

User text can never become a control token: the control tokens in it are marked before the template runs and encoded as
plain text afterwards (`control_tokens`). Placeholders are expanded as ids, after tokenization, so that only
placeholders written by the template are counted and expanded.
"""

from __future__ import annotations

import itertools
import json
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from decoder_service.chat import Layout, Medium, Message, RawPrompt, Role, Text, ToolCall, media_of
from decoder_service.families.family import Family, Prompt
from decoder_service.output.reasoning import OPENING
from decoder_service.output.tool_calls import CLOSING as CLOSING_CALL
from decoder_service.output.tool_calls import OPENING as OPENING_CALL
from decoder_service.request.control_tokens import ControlTokens, Conversation
from decoder_service.request.thinking import REASONING, Thinking, apply, template_choice
from decoder_service.request.tools import Tools
from serving.errors import Reason, failure, invalid, unimplemented

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Rendered:
    """A tokenized conversation with one placeholder for each medium.

    Attributes:
        token_ids: Token ids, with one placeholder for each medium.
        media: The media, one for each placeholder, in order.
        opens_reasoning: Whether the prompt ends inside the reasoning.
    """

    token_ids: tuple[int, ...]
    media: tuple[Medium, ...]
    opens_reasoning: bool = False


class PromptBuilder:
    """Builds prompts. Its methods block, so call them off the event loop. Safe to call from several threads.

    Args:
        tokenizer: The checkpoint's, with its chat template.
        family: Lays out the media.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, family: Family) -> None:
        self._tokenizer = tokenizer
        self._family = family
        self._kinds = family.placeholders
        self._inline: dict[str, str] = {}
        if family.inline_placeholders:
            named = {kind.value: str(tokenizer.convert_ids_to_tokens(token)) for token, kind in self._kinds.items()}
            self._inline = {} if _takes_parts(tokenizer, named) else named
        # Encoding changes settings of the tokenizer, so calls are serialized.
        self._lock = threading.Lock()
        # Disables its warning about long prompts; the service checks the context itself.
        tokenizer.model_max_length = sys.maxsize
        # Not only special tokens and those named in the template. A model may have learned others (`<tool_call>`),
        # which user text must not contain either.
        self._control_tokens = ControlTokens(
            [token.content for token in tokenizer.added_tokens_decoder.values() if not token.content.isspace()]
        )
        self.thinking = Thinking.of(tokenizer)
        """How the model thinks; None if it does not."""
        self.calls_tools = _calls_tools(tokenizer)
        """Whether the model calls tools, in the form that `decoder_service.output.tool_calls` reads."""
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

    def render(
        self, messages: Sequence[Message], *, tools: Tools | None = None, enable_thinking: bool | None = None
    ) -> Rendered:
        """Apply the chat template, with its generation prompt, and tokenize.

        A template that takes the content of a message as text gets the placeholders of its media in that text.

        If the last message is the assistant's, the answer continues it: the turn stays open. If that message has only
        reasoning, the answer continues the reasoning. System messages may be anywhere (see `_placed`).

        Args:
            messages: The conversation.
            tools: The tools to define.
            enable_thinking: Whether the model is to think; None: as the template decides.

        Raises:
            ServiceError: INVALID_ARGUMENT if the template refuses the conversation, or does not support
                `enable_thinking`; UNIMPLEMENTED if it does not support tools; INTERNAL if it does not write one
                placeholder for each medium.
        """
        choice: dict[str, Any] = {**template_choice(self.thinking, enable_thinking)}
        definitions = tools.definitions() if tools is not None else []
        called = [i for i, message in enumerate(messages) if message.role is Role.TOOL or _calls(message)]
        if (definitions or called) and not self.calls_tools:
            path = "tools" if definitions else f"messages[{called[0]}]"
            raise unimplemented(path, "leave tools out; the chat template of this model knows none")
        if definitions:
            choice["tools"] = self._control_tokens.marked(definitions)
        conversation = [_template_message(message) for message in self._placed(messages)]
        continued = _continued_part(messages[-1])
        try:
            with self._lock:
                chat = self._control_tokens.chat(
                    conversation, lambda marked: apply(self._tokenizer, self._as_taken(marked), continued, **choice)
                )
                ids: list[int] = self._tokenizer(chat, add_special_tokens=False, sanitize_control_tokens=True).input_ids
        except (jinja2.TemplateError, ValueError) as error:  # the latter if the last message cannot be continued
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
        opens = self.thinking is not None and (continued == REASONING or self._opens_reasoning(ids))
        return Rendered(tuple(ids), media, opens)

    def tokenize(self, prompt: RawPrompt) -> Rendered:
        """The tokens of a prompt without messages. Control tokens in a text stay text, unless it asks for them.

        Raises:
            ServiceError: INVALID_ARGUMENT if it has no token, or a placeholder of a medium.
        """
        ids, path = prompt.content, "prompt.token_ids"
        if isinstance(ids, str):
            path = "prompt.text"
            text = ids if prompt.parse_special else self._control_tokens.marked(ids)
            plain = not prompt.parse_special
            with self._lock:
                # Of an empty text the tokenizer makes something else than no ids.
                ids = (
                    tuple(self._tokenizer(text, add_special_tokens=False, sanitize_control_tokens=plain).input_ids)
                    if text
                    else ()
                )
        if not ids:
            raise invalid(path, "has no token; send at least one")
        if (placeholder := next((token for token in ids if token in self._kinds), None)) is not None:
            kind = self._kinds[placeholder].value
            raise invalid(path, f"has the placeholder of a medium (token {placeholder}); send the {kind} in a message")
        return Rendered(ids, ())

    def detokenize(self, token_ids: Sequence[int]) -> str:
        """The text of tokens, with control tokens by their names."""
        with self._lock:
            return str(
                self._tokenizer.decode(list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
            )

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

    def _as_taken(self, conversation: Conversation) -> Conversation:
        """The messages, whose control tokens are marked, with their content in the form that the template takes."""
        if not self._inline:
            return conversation
        return [{**message, "content": self._text(message["content"])} for message in conversation]

    def _text(self, content: str | Sequence[Mapping[str, str]]) -> str:
        if isinstance(content, str):
            return content
        return "".join(part["text"] if part["type"] == "text" else self._inline[part["type"]] for part in content)

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

    def _opens_reasoning(self, token_ids: Sequence[int]) -> bool:
        # A mark takes a few tokens at most, and the template writes a line break or two behind it.
        end = str(self._tokenizer.decode(list(token_ids[-16:]), skip_special_tokens=False))
        return end.rstrip().endswith(OPENING)

    def _encode(self, text: str) -> list[int]:
        with self._lock:
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids


def _takes_parts(tokenizer: PreTrainedTokenizerFast, placeholders: Mapping[str, str]) -> bool:
    """Whether the chat template takes content in parts, and writes the placeholder of each medium among them."""
    mark = "probe"
    probe: Any = [
        {"role": "user", "content": [*({"type": kind} for kind in placeholders), {"type": "text", "text": mark}]}
    ]
    try:
        text = str(tokenizer.apply_chat_template(probe, tokenize=False))
    except (jinja2.TemplateError, TypeError):  # the latter where text is added to a list
        return False
    return mark in text and all(text.count(placeholder) == 1 for placeholder in placeholders.values())


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


def _calls_tools(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether the chat template defines tools and asks for calls between the marks, which are tokens of their own."""
    template = tokenizer.chat_template
    if not isinstance(template, str) or OPENING_CALL not in template:
        return False
    return {OPENING_CALL, CLOSING_CALL} <= {token.content for token in tokenizer.added_tokens_decoder.values()}


def _calls(message: Message) -> tuple[ToolCall, ...]:
    return tuple(part for part in message.parts if isinstance(part, ToolCall))


def _arguments(text: str) -> object:
    """Arguments of a call in the form of chat templates: an object, or what the model wrote instead of one."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, dict) else text


def _continued_part(last: Message) -> bool | str:
    """The part of the last message that the answer continues, in the form that `apply` takes."""
    if last.role is not Role.ASSISTANT:
        return False
    if _calls(last):
        return False
    has_text = any(isinstance(part, Text) and part.text for part in last.parts)
    return REASONING if last.reasoning and not has_text else True


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
    seen: dict[str, Any] = {"role": message.role.value, "content": content}
    if all(part["type"] == "text" for part in content):
        seen["content"] = "".join(part["text"] for part in content)
    if message.reasoning:
        seen[REASONING] = message.reasoning
    if calls := _calls(message):
        seen["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": _arguments(call.arguments)},
            }
            for call in calls
        ]
    if message.tool_call_id:
        seen["tool_call_id"] = message.tool_call_id
    return seen
