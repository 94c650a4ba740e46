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
from vision_service.cache import Key, Layout
from vision_service.encoder import Encoder, feature_bytes
from vision_service.encodings import Encodings
from vision_service.media import Kind, Options
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
    """Answers calls with what the encoder makes of them, or has made before.

    Args:
        bundle: Whose encoder is served.
        encoder: For what it tells of itself.
        scheduler: Admits the calls.
        encodings: Does the work.
    """

    def __init__(self, bundle: Bundle, encoder: Encoder, scheduler: Scheduler, encodings: Encodings) -> None:
        self._bundle = bundle
        self._encoder = encoder
        self._scheduler = scheduler
        self._encodings = encodings

    async def Encode(
        self, request: vision_pb2.EncodeRequest, context: _Context
    ) -> AsyncIterator[vision_pb2.EncodeResponse]:
        """Header as soon as the grid is known, then the features."""
        with self._scheduler.admit():
            key = await self._key(request)
            async with self._encodings.want(key, request.data) as encoding:
                structlog.contextvars.bind_contextvars(features=encoding.source)
                yield vision_pb2.EncodeResponse(header=self._header(request, key, await encoding.layout()))
                features = (await encoding.encoded()).features
            for chunk in chunks(feature_bytes(features)):
                yield vision_pb2.EncodeResponse(chunk=chunk)

    async def Describe(self, request: vision_pb2.EncodeRequest, context: _Context) -> media_pb2.MediaLayout:
        """The layout alone. The medium is decoded for it, so that what is described can also be encoded."""
        with self._scheduler.admit():
            key = await self._key(request)
            return self._layout(request, key, await self._encodings.layout(key, request.data))

    async def GetEncoder(self, request: vision_pb2.GetEncoderRequest, context: _Context) -> vision_pb2.EncoderInfo:
        """What is loaded."""
        return vision_pb2.EncoderInfo(
            model=self._bundle.model.id,
            encoder_fingerprint=self._bundle.encoder_fingerprint,
            device=str(self._encoder.device),
            dtype=WIRE_DTYPES[self._encoder.dtype],
            feature_width=self._encoder.feature_width,
        )

    async def _key(self, request: vision_pb2.EncodeRequest) -> Key:
        structlog.contextvars.bind_contextvars(request_id=request.request_id)  # each call has a context of its own
        kind = _KINDS.get(request.kind)
        if kind is None:
            raise invalid("kind", f"is {request.kind} and must be MEDIA_KIND_IMAGE or MEDIA_KIND_VIDEO")
        check_options(request.options, "options")
        # Hashing 64 MiB takes some 50 ms: not on the event loop.
        digest = await asyncio.to_thread(media_digest, request.data)
        return Key.of(digest, kind, _options(request.options))

    def _layout(self, request: vision_pb2.EncodeRequest, key: Key, layout: Layout) -> media_pb2.MediaLayout:
        grid = layout.grid
        return media_pb2.MediaLayout(
            kind=request.kind,
            digest=key.digest,
            grid_thw=media_pb2.GridThw(t=grid.t, h=grid.h, w=grid.w),
            token_count=grid.patches // self._bundle.vision.spatial_merge_size**2,
            timestamps=layout.timestamps,
        )

    def _header(self, request: vision_pb2.EncodeRequest, key: Key, known: Layout) -> vision_pb2.EncodeHeader:
        layout = self._layout(request, key, known)
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
