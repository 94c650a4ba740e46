"""Interfaces of the two tiers, as the conductor uses them; `gateway.tiers` implements them with gRPC."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import NamedTuple

from vlm.v1 import chat_pb2, decoder_pb2, media_pb2, vision_pb2


class CallEndedError(Exception):
    """The call has ended, so nothing can be sent. Its `receive` raises the cause."""


class ReplicaCount(NamedTuple):
    """Replicas of a tier.

    Attributes:
        available: Those that are healthy and answer.
        known: Those that have an address.
        ejected: Of the available, those that get no calls for a while because their calls failed.
    """

    available: int
    known: int
    ejected: int = 0


@dataclass
class Route:
    """Where the attempts of one piece of work go: an encode, a generation, or a short call.

    Attributes:
        key: Equal keys prefer the same replica. None: any replica serves.
        load: The outstanding work that it stands for, in the unit of its tier.
        slack: Load over the tier's bound that it accepts for its key.
        joins: Whether a replica shares the work of running calls with equal keys.
        tried: Replicas on which it was attempted. Set by the tier.
        alternatives: Whether another available replica was left at the last attempt. Set by the tier.
    """

    key: bytes | None = None
    load: float = 0.0
    slack: float = 0.0
    joins: bool = False
    tried: set[str] = field(default_factory=set)
    alternatives: bool = False


class ReplicatedTier(ABC):
    """The replicas of a service."""

    @property
    @abstractmethod
    def replicas(self) -> ReplicaCount:
        """How many there are."""


class VisionTier(ReplicatedTier):
    """The replicas of the vision service."""

    @abstractmethod
    def encode(
        self, request: vision_pb2.EncodeRequest, *, seconds: float, route: Route
    ) -> AsyncGenerator[vision_pb2.EncodeResponse, None]:
        """Encode one medium. Responses are read on demand; closing the generator cancels the call.

        Args:
            request: The medium.
            seconds: Time limit.
            route: Where it goes.

        Raises:
            ServiceError: The call failed.
        """

    @abstractmethod
    async def describe(
        self, request: vision_pb2.EncodeRequest, *, seconds: float, route: Route
    ) -> media_pb2.MediaLayout:
        """Compute the layout of one medium. Raises ServiceError."""

    @abstractmethod
    async def encoder(self, *, seconds: float, route: Route) -> vision_pb2.EncoderInfo:
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


class DecoderTier(ReplicatedTier):
    """The replicas of the decoder service."""

    @abstractmethod
    def generate(
        self, opening: decoder_pb2.GenerateOpen, *, seconds: float, route: Route
    ) -> AbstractAsyncContextManager[GenerationCall]:
        """Start a generation. Leaving the context cancels it if it has not ended.

        A call that fails at once raises the error at its first `receive`.

        Args:
            opening: The request; it is sent as the first message.
            seconds: Time limit.
            route: Where it goes.
        """

    @abstractmethod
    async def count(
        self, request: decoder_pb2.CountPromptTokensRequest, *, seconds: float, route: Route
    ) -> decoder_pb2.CountPromptTokensResponse:
        """Count the tokens of a prompt. Raises ServiceError."""

    @abstractmethod
    async def detokenize(
        self, request: chat_pb2.DetokenizeRequest, *, seconds: float, route: Route
    ) -> chat_pb2.DetokenizeResponse:
        """Return the text of tokens. Raises ServiceError."""

    @abstractmethod
    async def model(self, *, seconds: float, route: Route) -> chat_pb2.Model:
        """Read the description of the loaded model. Raises ServiceError."""
