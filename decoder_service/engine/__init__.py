"""Engines: token ids and features in, token ids out. They know nothing of text and nothing of gRPC."""

from decoder_service.engine.interface import (
    Engine,
    EngineError,
    EngineEvent,
    EngineFinished,
    EngineInfo,
    EngineRequest,
    FinishReason,
    Prefilled,
    SamplingParams,
    TokenDrawn,
)

__all__ = [
    "Engine",
    "EngineError",
    "EngineEvent",
    "EngineFinished",
    "EngineInfo",
    "EngineRequest",
    "FinishReason",
    "Prefilled",
    "SamplingParams",
    "TokenDrawn",
]
