"""A decoder with a scripted engine."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable
from typing import Any

from decoder_service.engine import (
    Engine,
    EngineEvent,
    EngineFinished,
    EngineInfo,
    EngineRequest,
    FinishReason,
    Prefilled,
    TokenDrawn,
)
from decoder_service.output.constraint import Constraints
from decoder_service.output.detokenizer import TokenBytes
from decoder_service.request.admission import Admission, Limits
from decoder_service.request.decoder import Decoder, ModelFacts
from decoder_service.request.feature_store import FeatureStore
from decoder_service.request.generation import GenerationDefaults
from decoder_service.request.prompt import PromptBuilder
from serving.bundle import Bundle


class ScriptedEngine(Engine):
    """Generates the given tokens for every request, and records the requests."""

    info = EngineInfo("scripted", "none", 1, 1, constraints=True)
    ready = True

    def __init__(
        self,
        drawn: Iterable[TokenDrawn] = (),
        *,
        cached_tokens: int = 0,
        reason: FinishReason = FinishReason.LENGTH,
    ) -> None:
        self.drawn = tuple(drawn)
        self.reason = reason
        self.cached_tokens = cached_tokens
        self.requests: list[EngineRequest] = []

    async def start(self, set_ready: Callable[[bool], None]) -> None: ...

    async def generate(self, request: EngineRequest) -> AsyncGenerator[EngineEvent, None]:
        self.requests.append(request)
        yield Prefilled(0.0, 0.0, self.cached_tokens)
        for token in self.drawn:
            yield token
        yield EngineFinished(self.reason)

    async def stop(self) -> None: ...


def scripted_decoder(bundle: Bundle, prompts: PromptBuilder, engine: Engine, **limits: Any) -> Decoder:
    """A decoder with the given engine.

    Args:
        bundle: The bundle of the model.
        prompts: Builds its prompts.
        engine: The engine.
        limits: Limits that differ from the defaults.
    """
    return Decoder(
        model=ModelFacts(
            id="tiny",
            family=bundle.model.family,
            precision="fp32",
            feature_width=bundle.feature_width,
            encoder_fingerprint=bundle.encoder_fingerprint,
            end_tokens=frozenset(bundle.tokens.eos),
            vocab_size=bundle.text.vocab_size,
        ),
        prompts=prompts,
        constraints=Constraints(prompts.tokenizer, vocabulary=bundle.text.vocab_size, end_tokens=bundle.tokens.eos),
        token_bytes=TokenBytes(prompts.tokenizer.backend_tokenizer),
        engine=engine,
        admission=Admission(2, running=1, max_bytes=1 << 30),
        limits=Limits(context_length=4096, **limits),
        defaults=GenerationDefaults(),
        features=FeatureStore(1 << 30),
    )
