"""Raw prompts: text or tokens as the model reads them."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from dataclasses import dataclass

from vlm.v1 import chat_pb2

_shortened = reprlib.Repr()
_shortened.maxstring = 200


@dataclass(frozen=True, repr=False)
class Prompt:
    """What the model is to go on with, in the place of messages: no chat template is applied, and it has no media.

    Attributes:
        content: Text, or token ids; at least one token.
        parse_special: Read names of control tokens in text (`<|im_end|>`) as these tokens. Otherwise they stay plain
            text: set it only for text that nobody else wrote.
    """

    content: str | Sequence[int]
    parse_special: bool = False

    def __repr__(self) -> str:
        special = ", parse_special=True" if self.parse_special else ""
        return f"Prompt({_shortened.repr(self.content)}{special})"


def prompt_to_wire(prompt: Prompt) -> chat_pb2.Prompt:
    """Convert a raw prompt to a message.

    Raises:
        TypeError: It is neither text nor token ids.
        ValueError: No message can hold it.
    """
    content = prompt.content
    try:
        if isinstance(content, bytes | bytearray):
            raise TypeError("bytes are neither")
        if isinstance(content, str):
            return chat_pb2.Prompt(text=content, parse_special=prompt.parse_special)
        return chat_pb2.Prompt(token_ids=chat_pb2.TokenIds(values=content), parse_special=prompt.parse_special)
    except (TypeError, ValueError) as error:  # a UnicodeEncodeError is a ValueError with other arguments
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"the prompt is {_shortened.repr(content)}: it must be text or token ids: {error}") from None
