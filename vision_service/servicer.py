"""The gRPC servicer of the vision service; converts messages to values and back."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from typing import Any

import grpc
import structlog
import torch

from serving.bundle import Bundle
from serving.calls import bind_request_id, check_printable
from serving.errors import Reason, failure, invalid
from serving.media import BUDGET_FIELDS, check_options, media_digest, resolve_options
from serving.tasks import cancel_and_wait
from serving.tensors import chunks, dtype_name
from vision_service.cache import Key, Layout
from vision_service.encodings import Encodings
from vision_service.family import Encoder, Preprocessor
from vision_service.media import Kind, Options
from vision_service.scheduler import Meter, Scheduler
from vlm.v1 import media_pb2, tensor_pb2, vision_pb2, vision_pb2_grpc

WIRE_DTYPES = {
    torch.float32: tensor_pb2.DATA_TYPE_FLOAT32,
    torch.float16: tensor_pb2.DATA_TYPE_FLOAT16,
    torch.bfloat16: tensor_pb2.DATA_TYPE_BFLOAT16,
    torch.int8: tensor_pb2.DATA_TYPE_INT8,
}
_KINDS: dict[int, Kind] = {media_pb2.MEDIA_KIND_IMAGE: "image", media_pb2.MEDIA_KIND_VIDEO: "video"}

_Context = grpc.aio.ServicerContext[Any, Any]

_PROGRESS_SECONDS = 1.0
"""Seconds between two progress messages."""


class VisionServicer(vision_pb2_grpc.VisionEncoderServicer):
    """Serves calls with new or cached features.

    Args:
        bundle: The bundle of the encoder.
        preprocessor: Computes the tokens of a medium.
        encoder: Gives the type and the width of features.
        info: The message from `describe`.
        scheduler: Admits the calls.
        encodings: Returns the features.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        preprocessor: Preprocessor,
        encoder: Encoder,
        info: vision_pb2.EncoderInfo,
        scheduler: Scheduler,
        encodings: Encodings,
    ) -> None:
        self._bundle = bundle
        self._preprocessor = preprocessor
        self._encoder = encoder
        self._info = info
        self._scheduler = scheduler
        self._encodings = encodings

    async def Encode(
        self, request: vision_pb2.EncodeRequest, context: _Context
    ) -> AsyncIterator[vision_pb2.EncodeResponse]:
        """Send the header when the grid is known, then the features; progress while waiting for either."""
        with self._scheduler.admit():
            key = await self._key(request)
            left = context.time_remaining()
            # None without a deadline, contrary to the stubs.
            seconds = math.inf if left is None else left  # type: ignore[redundant-expr]
            async with self._encodings.acquire(key, request.data, seconds) as encoding:
                structlog.contextvars.bind_contextvars(features=encoding.source)
                async with contextlib.aclosing(_until(encoding.layout(), encoding.meter)) as progress:
                    async for response in progress:
                        yield response
                yield vision_pb2.EncodeResponse(header=self._header(request, key, await encoding.layout()))
                async with contextlib.aclosing(_until(encoding.encoded(), encoding.meter)) as progress:
                    async for response in progress:
                        yield response
                features = (await encoding.encoded()).features
            for chunk in chunks(feature_bytes(features)):
                yield vision_pb2.EncodeResponse(chunk=chunk)

    async def Describe(self, request: vision_pb2.EncodeRequest, context: _Context) -> media_pb2.MediaLayout:
        """Return the layout. The medium is decoded for it, so that its encoding will not fail on the file."""
        with self._scheduler.admit():
            key = await self._key(request)
            return self._layout(request, key, await self._encodings.layout(key, request.data))

    async def GetEncoder(self, request: vision_pb2.GetEncoderRequest, context: _Context) -> vision_pb2.EncoderInfo:
        """Return the description of the encoder."""
        return self._info

    async def _key(self, request: vision_pb2.EncodeRequest) -> Key:
        bind_request_id(request.request_id)
        kind = _KINDS.get(request.kind)
        if kind is None:
            raise invalid("kind", f"is {request.kind} and must be MEDIA_KIND_IMAGE or MEDIA_KIND_VIDEO")
        if request.settings_digest not in ("", self._info.settings_digest):
            raise failure(
                Reason.ENCODER_SETTINGS_DIFFER,
                f"a vision service has {_settings(self._info)} (settings_digest {self._info.settings_digest}), and "
                f"another one other settings ({request.settings_digest}); start all of them with the same --dtype and "
                "--default-max-…",
                retry_after=1.0,
            )
        scope = check_printable(request.cache_scope, path="cache_scope")
        check_options(request.options, "options")
        options = resolve_options(
            request.kind,
            request.options,
            default=self._info.default_media,
            published=self._info.published_media,
        )
        check_options(options, "options")
        # Hashing 64 MiB takes some 50 ms: not on the event loop.
        digest = await asyncio.to_thread(media_digest, request.data)
        return Key.of(digest, kind, _options(options), scope)

    def _layout(self, request: vision_pb2.EncodeRequest, key: Key, layout: Layout) -> media_pb2.MediaLayout:
        grid = layout.grid
        return media_pb2.MediaLayout(
            kind=request.kind,
            digest=key.digest,
            grid_thw=media_pb2.GridThw(t=grid.t, h=grid.h, w=grid.w),
            token_count=self._preprocessor.token_count(grid),
            timestamps=layout.timestamps,
            size_given=media_pb2.Size(width=layout.size_given[0], height=layout.size_given[1]),
            size_used=media_pb2.Size(width=layout.size_used[0], height=layout.size_used[1]),
            frame_times=layout.frame_times,
        )

    def _header(self, request: vision_pb2.EncodeRequest, key: Key, known: Layout) -> vision_pb2.EncodeHeader:
        layout = self._layout(request, key, known)
        return vision_pb2.EncodeHeader(
            layout=layout,
            features=tensor_pb2.TensorSpec(
                dtype=WIRE_DTYPES[self._encoder.out_dtype], shape=[layout.token_count, self._encoder.feature_width]
            ),
            encoder_fingerprint=self._bundle.encoder_fingerprint,
            encoder_dtype=self._info.dtype,
        )


def describe(
    bundle: Bundle, encoder: Encoder, *, default: media_pb2.MediaOptions, published: media_pb2.MediaOptions
) -> vision_pb2.EncoderInfo:
    """The description of the encoder and its settings.

    Args:
        bundle: The bundle of the encoder.
        encoder: The encoder.
        default: The default budget.
        published: The checkpoint's own limits.
    """
    info = vision_pb2.EncoderInfo(
        encoder_fingerprint=bundle.encoder_fingerprint,
        dtype=WIRE_DTYPES[encoder.dtype],
        default_media=default,
        published_media=published,
    )
    info.settings_digest = hashlib.sha256(info.SerializeToString(deterministic=True)).hexdigest()[:16]
    info.model = bundle.model.id
    info.device = str(encoder.device)
    info.feature_width = encoder.feature_width
    return info


def feature_bytes(features: torch.Tensor) -> memoryview:
    """The bytes of features, little-endian, without a copy. numpy has no bfloat16."""
    return features.contiguous().view(torch.uint8).reshape(-1).numpy().data


def _settings(info: vision_pb2.EncoderInfo) -> str:
    """The settings that replicas must share, as text."""
    bounds = ", ".join(f"{name} {getattr(info.default_media, name)}" for name in BUDGET_FIELDS)
    return f"dtype {dtype_name(info.dtype)}, {bounds}"


async def _until(result: Coroutine[Any, Any, Any], meter: Meter) -> AsyncGenerator[vision_pb2.EncodeResponse, None]:
    """Yield progress until the result is ready. The caller awaits the result, or its error, itself."""
    waiting = asyncio.ensure_future(result)
    try:
        while not (await asyncio.wait((waiting,), timeout=_PROGRESS_SECONDS))[0]:
            progress = vision_pb2.EncodeProgress(patches_done=meter.done, patches_total=meter.total)
            yield vision_pb2.EncodeResponse(progress=progress)
    finally:
        await cancel_and_wait(waiting)


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
