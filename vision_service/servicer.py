"""The wire of the vision service: messages to plain values and back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import structlog
import torch

from serving.bundle import Bundle
from serving.errors import invalid
from serving.media import check_options, media_digest
from serving.tensors import chunks
from vision_service.encoder import Encoder, feature_bytes
from vision_service.media import Kind, Medium, Options
from vision_service.scheduler import Scheduler
from vlm.v1 import media_pb2, tensor_pb2, vision_pb2, vision_pb2_grpc

WIRE_DTYPES = {
    torch.float32: tensor_pb2.DATA_TYPE_FLOAT32,
    torch.float16: tensor_pb2.DATA_TYPE_FLOAT16,
    torch.bfloat16: tensor_pb2.DATA_TYPE_BFLOAT16,
}
_KINDS: dict[int, Kind] = {media_pb2.MEDIA_KIND_IMAGE: "image", media_pb2.MEDIA_KIND_VIDEO: "video"}

_Context = grpc.aio.ServicerContext[Any, Any]


class VisionServicer(vision_pb2_grpc.VisionEncoderServicer):
    """Answers calls with what the scheduler makes of them.

    Args:
        bundle: Whose encoder is served.
        encoder: For what it tells of itself.
        scheduler: Does the work.
    """

    def __init__(self, bundle: Bundle, encoder: Encoder, scheduler: Scheduler) -> None:
        self._bundle = bundle
        self._encoder = encoder
        self._scheduler = scheduler

    async def Encode(
        self, request: vision_pb2.EncodeRequest, context: _Context
    ) -> AsyncIterator[vision_pb2.EncodeResponse]:
        """Header as soon as the grid is known, then the features."""
        with self._scheduler.admit():
            layout, medium = await self._prepare(request)
            with self._scheduler.enqueue(medium) as pending:
                yield vision_pb2.EncodeResponse(header=self._header(layout))
                features = await pending
            for chunk in chunks(feature_bytes(features)):
                yield vision_pb2.EncodeResponse(chunk=chunk)

    async def Describe(self, request: vision_pb2.EncodeRequest, context: _Context) -> media_pb2.MediaLayout:
        """The layout alone. The medium is decoded for it, so that what is described can also be encoded."""
        with self._scheduler.admit():
            layout, _ = await self._prepare(request)
            return layout

    async def GetEncoder(self, request: vision_pb2.GetEncoderRequest, context: _Context) -> vision_pb2.EncoderInfo:
        """What is loaded."""
        return vision_pb2.EncoderInfo(
            model=self._bundle.model.id,
            encoder_fingerprint=self._bundle.encoder_fingerprint,
            device=str(self._encoder.device),
            dtype=WIRE_DTYPES[self._encoder.dtype],
            feature_width=self._encoder.feature_width,
        )

    async def _prepare(self, request: vision_pb2.EncodeRequest) -> tuple[media_pb2.MediaLayout, Medium]:
        structlog.contextvars.bind_contextvars(request_id=request.request_id)  # each call has a context of its own
        kind = _KINDS.get(request.kind)
        if kind is None:
            raise invalid("kind", f"is {request.kind} and must be MEDIA_KIND_IMAGE or MEDIA_KIND_VIDEO")
        check_options(request.options, "options")
        # Hashing 64 MiB takes some 50 ms: not on the event loop.
        digest = await asyncio.to_thread(media_digest, request.data)
        medium = await self._scheduler.prepare(kind, request.data, _options(request.options))
        layout = media_pb2.MediaLayout(
            kind=request.kind,
            digest=digest,
            grid_thw=media_pb2.GridThw(t=medium.grid.t, h=medium.grid.h, w=medium.grid.w),
            token_count=medium.grid.patches // self._bundle.vision.spatial_merge_size**2,
            timestamps=medium.timestamps,
        )
        return layout, medium

    def _header(self, layout: media_pb2.MediaLayout) -> vision_pb2.EncodeHeader:
        return vision_pb2.EncodeHeader(
            layout=layout,
            features=tensor_pb2.TensorSpec(
                dtype=WIRE_DTYPES[self._encoder.out_dtype], shape=[layout.token_count, self._encoder.feature_width]
            ),
            encoder_fingerprint=self._bundle.encoder_fingerprint,
        )


def _options(options: media_pb2.MediaOptions) -> Options:
    def given(name: str) -> int | None:
        return int(getattr(options, name)) if options.HasField(name) else None  # type: ignore[arg-type]

    return Options(
        min_pixels=given("min_pixels"),
        max_pixels=given("max_pixels"),
        fps=options.fps if options.HasField("fps") else None,
        min_frames=given("min_frames"),
        max_frames=given("max_frames"),
        min_video_pixels=given("min_video_pixels"),
        max_video_pixels=given("max_video_pixels"),
    )
