"""A request to answer a conversation."""

from __future__ import annotations

from dataclasses import dataclass

from decoder_service.chat import Message
from decoder_service.request.generation import Generation
from vlm.v1 import tensor_pb2


@dataclass(frozen=True)
class Opening:
    """A request to answer a conversation, checked.

    Attributes:
        request_id: For logs and traces.
        messages: The conversation.
        generation: How the answer is drawn.
        encoder_dtype: Type that the encoder computes in; unspecified where the caller does not tell.
        report_progress: Whether the client wants to know how far the request is.
        enable_thinking: Whether the model is to think before it answers; None leaves it to the model's chat template.
    """

    request_id: str
    messages: tuple[Message, ...]
    generation: Generation
    encoder_dtype: tensor_pb2.DataType.ValueType = tensor_pb2.DATA_TYPE_UNSPECIFIED
    report_progress: bool = False
    enable_thinking: bool | None = None
