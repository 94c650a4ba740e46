"""The checked opening of a `Generate` request."""

from __future__ import annotations

from dataclasses import dataclass, field

from decoder_service.chat import Message, RawPrompt
from decoder_service.request.generation import Generation
from decoder_service.request.tools import Tools
from vlm.v1 import tensor_pb2


@dataclass(frozen=True)
class Opening:
    """The checked opening of a `Generate` request.

    Attributes:
        request_id: For logs and traces.
        messages: The conversation, or what takes its place.
        generation: Its generation options.
        encoder_dtype: Type in which the encoder computes; unspecified if the caller does not know it.
        report_progress: Whether to send progress events.
        tools: What the model may call.
        enable_thinking: Whether the model is to think before it answers; None: as its chat template decides.
        cache_scope: What is kept of earlier requests is used only if this is equal.
    """

    request_id: str
    messages: tuple[Message, ...] | RawPrompt
    generation: Generation
    encoder_dtype: tensor_pb2.DataType.ValueType = tensor_pb2.DATA_TYPE_UNSPECIFIED
    report_progress: bool = False
    enable_thinking: bool | None = None
    tools: Tools = field(default_factory=Tools)
    cache_scope: str = ""
