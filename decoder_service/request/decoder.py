"""The loaded model, and the operations on it that need no stream."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from decoder_service.chat import Layout, Message, RawPrompt
from decoder_service.engine import Engine
from decoder_service.output.constraint import Constraints
from decoder_service.output.detokenizer import TokenBytes
from decoder_service.request.admission import Admission, Limits, check_room
from decoder_service.request.feature_store import FeatureStore
from decoder_service.request.generation import GenerationDefaults
from decoder_service.request.prompt import PromptBuilder, Rendered
from decoder_service.request.thinking import GreedyThinking
from decoder_service.request.tools import Tools


@dataclass(frozen=True)
class ModelFacts:
    """The properties of the model against which requests are checked.

    Attributes:
        id: The model's name.
        family: The name of its family.
        precision: Precision of the decoder's weights.
        feature_width: Width of a feature row.
        encoder_fingerprint: Fingerprint of the encoder whose features it was trained with.
        end_tokens: Tokens that end a turn.
        vocab_size: Size of the vocabulary; token ids are below it.
    """

    id: str
    family: str
    precision: str
    feature_width: int
    encoder_fingerprint: str
    end_tokens: frozenset[int]
    vocab_size: int


@dataclass(frozen=True)
class Decoder:
    """The loaded model with all that requests share."""

    model: ModelFacts
    prompts: PromptBuilder
    token_bytes: TokenBytes
    engine: Engine
    admission: Admission
    limits: Limits
    defaults: GenerationDefaults
    features: FeatureStore
    constraints: Constraints
    greedy_thinking: GreedyThinking = field(default_factory=GreedyThinking)

    async def count(
        self,
        messages: Sequence[Message] | RawPrompt,
        layouts: Sequence[Layout],
        *,
        ids: bool,
        texts: bool = False,
        tools: Tools | None = None,
        enable_thinking: bool | None = None,
    ) -> PromptCount:
        """Count the tokens of a prompt, which may be longer than the context.

        Args:
            messages: The conversation, or what takes its place.
            layouts: One for each medium, in order.
            ids: Whether to return the ids; then the prompt must fit.
            texts: Whether to return the texts of the tokens; likewise.
            tools: As for `PromptBuilder.render`.
            enable_thinking: As for `PromptBuilder.render`.

        Raises:
            ServiceError: The template refuses the conversation, or it does not fit.
        """
        rendered = await self.render(messages, tools=tools, enable_thinking=enable_thinking)
        lengths = await asyncio.to_thread(lambda: [self.prompts.length(layout) for layout in layouts])
        total = len(rendered.token_ids) + sum(length - 1 for length in lengths)
        token_ids: tuple[int, ...] = ()
        if ids or texts:
            check_room(total, None, self.limits.context_length)
            token_ids = (await asyncio.to_thread(self.prompts.expand, rendered, layouts)).token_ids
        return PromptCount(
            total,
            sum(layout.token_count for layout in layouts),
            token_ids if ids else (),
            tuple(self.token_bytes.shown(token) for token in token_ids) if texts else (),
        )

    async def render(
        self,
        messages: Sequence[Message] | RawPrompt,
        *,
        tools: Tools | None = None,
        enable_thinking: bool | None = None,
    ) -> Rendered:
        """The tokens of a conversation, or of what takes its place. Raises ServiceError as `PromptBuilder` does."""
        if isinstance(messages, RawPrompt):
            return await asyncio.to_thread(self.prompts.tokenize, messages)
        return await asyncio.to_thread(self.prompts.render, messages, tools=tools, enable_thinking=enable_thinking)


@dataclass(frozen=True)
class PromptCount:
    """Size of a prompt.

    Attributes:
        prompt_tokens: All tokens.
        media_tokens: Tokens of media among them.
        token_ids: The ids, if requested.
        token_texts: The text of each token, if requested.
    """

    prompt_tokens: int
    media_tokens: int
    token_ids: tuple[int, ...]
    token_texts: tuple[str, ...] = ()
