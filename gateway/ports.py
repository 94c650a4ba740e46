"""Interfaces of the two tiers, as the conductor uses them; `gateway.tiers` implements them with gRPC."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager

from vlm.v1 import chat_pb2, decoder_pb2, media_pb2, vision_pb2


class CallEndedError(Exception):
    """The call has ended, so nothing can be sent. Its `receive` raises the cause."""


class VisionTier(ABC):
    """The replicas of the vision service."""

    @abstractmethod
    def encode(
        self, request: vision_pb2.EncodeRequest, *, seconds: float
    ) -> AsyncGenerator[vision_pb2.EncodeResponse, None]:
        """Encode one medium. Responses are read on demand; closing the generator cancels the call.

        Args:
            request: The medium.
            seconds: Time limit.

        Raises:
            ServiceError: The call failed.
        """

    @abstractmethod
    async def describe(self, request: vision_pb2.EncodeRequest, *, seconds: float) -> media_pb2.MediaLayout:
        """Compute the layout of one medium. Raises ServiceError."""

    @abstractmethod
    async def encoder(self, *, seconds: float) -> vision_pb2.EncoderInfo:
        """Read the description of the loaded model. Raises ServiceError."""


class GenerationCall(ABC):
    """One call of `Decoder.Generate`."""

    @abstractmethod
    async def send(self, request: decoder_pb2.GenerateRequest) -> None:
        """Send one message; returns when there is room for another. One sender at a time.

        Raises:
            CallEndedError: The call has ended.
        """

    @abstractmethod
    async def done_sending(self) -> None:
        """Close the sending side of the call."""

    @abstractmethod
    async def receive(self) -> decoder_pb2.GenerateResponse | None:
        """The next message, or None after the last. One receiver at a time.

        Raises:
            ServiceError: The call failed.
        """


class DecoderTier(ABC):
    """The replicas of the decoder service."""

    @abstractmethod
    def generate(
        self, opening: decoder_pb2.GenerateOpen, *, seconds: float
    ) -> AbstractAsyncContextManager[GenerationCall]:
        """Start a generation. Leaving the context cancels it if it has not ended.

        A call that fails at once raises the error at its first `receive`.

        Args:
            opening: The request; it is sent as the first message.
            seconds: Time limit.
        """

    @abstractmethod
    async def count(
        self, request: decoder_pb2.CountPromptTokensRequest, *, seconds: float
    ) -> decoder_pb2.CountPromptTokensResponse:
        """Count the tokens of a prompt. Raises ServiceError."""

    @abstractmethod
    async def detokenize(self, request: chat_pb2.DetokenizeRequest, *, seconds: float) -> chat_pb2.DetokenizeResponse:
        """Return the text of tokens. Raises ServiceError."""

    @abstractmethod
    async def model(self, *, seconds: float) -> chat_pb2.Model:
        """Read the description of the loaded model. Raises ServiceError."""
