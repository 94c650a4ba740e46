"""The settings of the vision tier: its default budget of pixels and frames."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.ports import VisionTier
from gateway.retry import Deadline, Retries
from serving.media import requested_options, resolve_options
from vlm.v1 import media_pb2, tensor_pb2, vision_pb2


@dataclass(frozen=True)
class Budget:
    """The settings of the vision tier.

    Attributes:
        info: The message of a replica.
    """

    info: vision_pb2.EncoderInfo

    @property
    def encoder_dtype(self) -> tensor_pb2.DataType.ValueType:
        """Type in which the encoder computes."""
        return self.info.dtype

    @property
    def settings_digest(self) -> str:
        """Digest of the settings; all replicas must have the same."""
        return self.info.settings_digest

    def options(
        self, kind: media_pb2.MediaKind.ValueType, request: media_pb2.MediaOptions, own: media_pb2.MediaOptions
    ) -> media_pb2.MediaOptions:
        """The resolved options of one medium, in numbers: for encoding and as a cache key.

        Args:
            kind: Image or video.
            request: Options of the whole request.
            own: The medium's own options.
        """
        return resolve_options(
            kind,
            requested_options(request, own),
            default=self.info.default_media,
            published=self.info.published_media,
        )


class TierBudget:
    """Reads the budget from the tier once, and again if a replica has another one.

    Args:
        vision: The tier.
        retries: The retries at the tier.
        known: The settings, if they are known already.
    """

    def __init__(self, vision: VisionTier, retries: Retries, *, known: vision_pb2.EncoderInfo | None = None) -> None:
        self._vision = vision
        self._retries = retries
        self._budget = None if known is None else Budget(known)

    async def get(self, deadline: Deadline) -> Budget:
        """The budget. Raises ServiceError if the tier is unavailable."""
        if self._budget is None:
            info = await self._retries.run(
                lambda route: self._vision.encoder(seconds=deadline.remaining(), route=route), deadline
            )
            self._budget = Budget(info)
        return self._budget

    def forget(self, budget: Budget) -> None:
        """Read the budget again at the next `get`, unless another request has done so since `budget` was read."""
        if self._budget is budget:
            self._budget = None
