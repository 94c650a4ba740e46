"""Engines: token ids and features in, token ids out. They know nothing of text and nothing of gRPC."""

import os

# ONNX Runtime reports its use to its makers unless it is told otherwise before it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from decoder_service.engine.features import FeatureRows
from decoder_service.engine.interface import (
    MAX_LOGPROBS,
    Engine,
    EngineError,
    EngineEvent,
    EngineFinished,
    EngineInfo,
    EngineRequest,
    FinishReason,
    Limit,
    Prefilled,
    Prefilling,
    SamplingParams,
    TokenDrawn,
    TokenLogprob,
)
from decoder_service.engine.media import Span

__all__ = [
    "MAX_LOGPROBS",
    "Engine",
    "EngineError",
    "EngineEvent",
    "EngineFinished",
    "EngineInfo",
    "EngineRequest",
    "FeatureRows",
    "FinishReason",
    "Limit",
    "Prefilled",
    "Prefilling",
    "SamplingParams",
    "Span",
    "TokenDrawn",
    "TokenLogprob",
]
