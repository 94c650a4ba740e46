"""Engines: token ids and features in, token ids out. They do not depend on text or gRPC."""

import os

# ONNX Runtime sends telemetry unless it is disabled before the import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from decoder_service.engine.features import FeatureRows
from decoder_service.engine.interface import (
    MAX_LOGPROBS,
    Constraint,
    ConstraintError,
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
    "Constraint",
    "ConstraintError",
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
