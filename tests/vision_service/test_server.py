"""The vision service on a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serving.bundle import Bundle
from serving.errors import Code, ServiceError
from serving.media import media_digest
from serving.server import serve
from serving.status import from_rpc_error
from serving.tensors import CHUNK_BYTES, TensorAssembler
from serving.transport import open_channel
from tests import pictures
from tests.vision_service.clips import noises
from tests.vision_service.conftest import error
from tests.vision_service.gated import GatedEncoder
from vision_service.families.qwen3_vl.encoder import Encoder
from vision_service.families.qwen3_vl.preprocess import Preprocessor
from vision_service.media import Options
from vision_service.service import VisionService
from vision_service.settings import VisionSettings
from vlm.v1 import media_pb2, tensor_pb2, vision_pb2, vision_pb2_grpc

IMAGE, VIDEO = media_pb2.MEDIA_KIND_IMAGE, media_pb2.MEDIA_KIND_VIDEO


@dataclass
class Running:
    """A server that runs, and a client of it."""

    service: VisionService
    stub: Any
    health: Any
    stop: asyncio.Event
    server: asyncio.Task[None]


class GatedService(VisionService):
    """A service whose encoder can be held in the middle of its work."""

    encoder: GatedEncoder

    def _load(self, device: torch.device) -> tuple[Bundle, Preprocessor, Encoder]:
        bundle, preprocessor, encoder = super()._load(device)
        self.encoder = GatedEncoder(encoder)
        return bundle, preprocessor, self.encoder

    async def hold(self) -> None:
        """From now on the encoder waits before each forward."""
        self.encoder.entered.clear()
        self.encoder.gate.clear()

    async def held(self) -> None:
        """Until the encoder has begun a forward."""
        assert await asyncio.to_thread(self.encoder.entered.wait, 30), "the encoder has not begun within 30 s"


@asynccontextmanager
async def running(bundle: Bundle, service: type[VisionService] = VisionService, **settings: Any) -> AsyncIterator[Any]:
    """Run the service on a free port until the end of the block."""
    configured = VisionSettings(bundle=bundle.root, port=0, **{"device": "cpu", "dtype": "float32", **settings})
    panel, stop = service(configured), asyncio.Event()
    port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    server = asyncio.create_task(serve(panel, configured, on_listening=port.set_result, stop=stop))
    try:
        await asyncio.wait([server, port], return_when=asyncio.FIRST_COMPLETED)
        if server.done():
            await server
        async with open_channel(f"127.0.0.1:{port.result()}") as channel:
            yield Running(
                panel,
                vision_pb2_grpc.VisionEncoderStub(channel),
                health_pb2_grpc.HealthStub(channel),
                stop,
                server,
            )
    finally:
        stop.set()
        if isinstance(panel, GatedService):
            panel.encoder.gate.set()
        await server


async def next_payload(responses: AsyncIterator[vision_pb2.EncodeResponse]) -> vision_pb2.EncodeResponse:
    """The next response that is not progress, of which a busy machine makes more."""
    while (response := await anext(responses)).WhichOneof("payload") == "progress":
        pass
    return response


async def encode(
    stub: Any, request: vision_pb2.EncodeRequest, seconds: float | None = None
) -> tuple[vision_pb2.EncodeHeader, np.ndarray]:
    """The header and the whole features of one medium."""
    call = stub.Encode(request, timeout=seconds)
    responses = aiter(call)
    header = (await next_payload(responses)).header
    spec = header.features
    assembler = TensorAssembler(
        spec, rows=header.layout.token_count, width=spec.shape[1], max_bytes=1 << 26, path="features"
    )
    async for response in responses:
        if response.WhichOneof("payload") == "progress":
            continue
        assert response.WhichOneof("payload") == "chunk"
        assert len(response.chunk.data) <= CHUNK_BYTES
        assembler.add(response.chunk)
    assert assembler.complete
    return header, assembler.array()


def image(width: int = 96, height: int = 64, **options: Any) -> vision_pb2.EncodeRequest:
    """A request for an image."""
    data = pictures.png(pictures.noise(width, height))
    return vision_pb2.EncodeRequest(kind=IMAGE, data=data, options=media_pb2.MediaOptions(**options))


async def refusal(call: Any) -> ServiceError:
    """What a call fails with."""

    async def end() -> None:
        if isinstance(call, AsyncIterable):
            async for _ in call:
                pass
        else:
            await call

    with pytest.raises(grpc.RpcError) as caught:
        await end()
    return from_rpc_error(caught.value)


async def test_image(bundle: Bundle, encoder: Encoder, preprocessor: Preprocessor) -> None:
    """An image's header tells its layout, its chunks are the encoder's features."""
    request = image(300, 200)
    async with running(bundle) as server:
        header, features = await encode(server.stub, request)
    medium = preprocessor.prepare("image", request.data, Options())
    assert header.encoder_fingerprint == bundle.encoder_fingerprint
    layout = header.layout
    assert (layout.kind, layout.digest, list(layout.timestamps)) == (IMAGE, media_digest(request.data), [])
    assert (layout.grid_thw.t, layout.grid_thw.h, layout.grid_thw.w) == medium.grid
    assert layout.token_count == medium.grid.patches // 4
    assert header.features.dtype == tensor_pb2.DATA_TYPE_FLOAT32
    assert list(header.features.shape) == [layout.token_count, bundle.feature_width]
    assert error(features, encoder.encode([medium])[0]) <= 1e-5


async def test_video(bundle: Bundle, encoder: Encoder, preprocessor: Preprocessor) -> None:
    """A video's header has the times of its temporal patches too."""
    data = pictures.video(noises(12), 4)
    request = vision_pb2.EncodeRequest(kind=VIDEO, data=data, options=media_pb2.MediaOptions(fps=2.0))
    async with running(bundle) as server:
        header, features = await encode(server.stub, request)
        layout = await server.stub.Describe(request)
    medium = preprocessor.prepare("video", data, Options(fps=2.0))
    assert header.layout == layout
    assert (layout.grid_thw.t, layout.grid_thw.h, layout.grid_thw.w) == medium.grid
    assert tuple(layout.timestamps) == medium.timestamps
    assert len(layout.timestamps) == layout.grid_thw.t
    assert error(features, encoder.encode([medium])[0]) <= 1e-5


async def test_features_longer_than_a_chunk(bundle: Bundle, encoder: Encoder, preprocessor: Preprocessor) -> None:
    """Features of several chunks come together again, of rows that chunks cut through."""
    request = image(1184, 1184, max_pixels=1184 * 1184)
    async with running(bundle) as server:
        header, features = await encode(server.stub, request)
    assert features.nbytes > CHUNK_BYTES
    assert CHUNK_BYTES % (bundle.feature_width * 4) != 0
    medium = preprocessor.prepare("image", request.data, Options(max_pixels=1184 * 1184))
    assert header.layout.token_count == 37 * 37
    assert error(features, encoder.encode([medium])[0]) <= 1e-5


@pytest.mark.parametrize("wire", ["float16", "bfloat16"])
async def test_halves_on_the_wire(wire: str, bundle: Bundle) -> None:
    """Features go in the type that the settings name, and the header says so."""
    async with running(bundle) as server:
        _, expected = await encode(server.stub, image())
    async with running(bundle, wire_dtype=wire) as server:
        header, features = await encode(server.stub, image())
    assert header.features.dtype == tensor_pb2.DataType.Value(f"DATA_TYPE_{wire.upper()}")
    assert np.allclose(features, expected, rtol=2.0**-7, atol=1e-3)


async def test_many_at_once(bundle: Bundle) -> None:
    """Requests that come together get the features that each gets alone."""
    requests = [image(32 * n, 64) for n in range(2, 10)]
    async with running(bundle, feature_cache_bytes=0) as server:
        alone = [await encode(server.stub, request) for request in requests]
        together = await asyncio.gather(*(encode(server.stub, request) for request in requests))
    for (header, expected), (other, got) in zip(alone, together, strict=True):
        assert other == header
        assert error(got, expected) <= 1e-5


async def payloads(call: Any) -> AsyncIterator[bytes]:
    """The responses of a call without progress, as bytes."""
    async for response in call:
        if response.WhichOneof("payload") != "progress":
            yield response.SerializeToString()


async def test_seen_before(bundle: Bundle) -> None:
    """A medium asked for again with the same options comes from the cache, the same to the last byte."""
    clip = vision_pb2.EncodeRequest(
        kind=VIDEO, data=pictures.video(noises(12), 4), options=media_pb2.MediaOptions(fps=2.0)
    )
    large = image(1184, 1184, max_pixels=1184 * 1184)  # several chunks
    async with running(bundle, GatedService) as server:
        for request in (image(), large, clip):
            server.service.encoder.batches.clear()
            first = [sent async for sent in payloads(server.stub.Encode(request))]
            encoded = list(server.service.encoder.batches)
            again = [sent async for sent in payloads(server.stub.Encode(request))]
            assert encoded
            assert server.service.encoder.batches == encoded
            assert again == first
            # The layout is told from the cache, too, and is the same.
            header = vision_pb2.EncodeResponse.FromString(first[0]).header
            assert await server.stub.Describe(request) == header.layout


async def test_seen_before_with_other_options(bundle: Bundle) -> None:
    """Options that change the features make another entry; those that say nothing about the kind do not."""
    async with running(bundle, GatedService) as server:
        server.service.encoder.batches.clear()
        for options in ({}, {"max_pixels": 64 * 64}, {"max_pixels": 48 * 64}, {"min_pixels": 128 * 96}):
            await encode(server.stub, image(**options))
        assert len(server.service.encoder.batches) == 4
        await encode(server.stub, image(fps=3.0, max_frames=5, max_video_pixels=10_000))
        assert len(server.service.encoder.batches) == 4


async def test_nothing_is_kept_without_a_cache(bundle: Bundle) -> None:
    """A cache of no bytes is none: each request is encoded."""
    async with running(bundle, GatedService, feature_cache_bytes=0) as server:
        server.service.encoder.batches.clear()
        first, second = [await encode(server.stub, image()) for _ in range(2)]
        assert len(server.service.encoder.batches) == 2
        assert first[0] == second[0]


async def test_header_comes_before_the_features(bundle: Bundle) -> None:
    """The layout is known to the client while the encoder has not finished, or begun."""
    async with running(bundle, GatedService) as server:
        await server.service.hold()
        responses = aiter(server.stub.Encode(image()))
        first = await next_payload(responses)
        assert first.header.layout.token_count == 6
        server.service.encoder.gate.set()
        assert (await next_payload(responses)).chunk.offset == 0


async def test_get_encoder(bundle: Bundle) -> None:
    """What is loaded is told."""
    async with running(bundle) as server:
        info = await server.stub.GetEncoder(vision_pb2.GetEncoderRequest())
    published = {
        "min_pixels": 4096,
        "max_pixels": 36864,
        "fps": 2.0,
        "min_frames": 4,
        "max_frames": 768,
        "min_video_pixels": 8192,
        "max_video_pixels": 36864,
    }
    assert info == vision_pb2.EncoderInfo(
        model=bundle.model.id,
        encoder_fingerprint=bundle.encoder_fingerprint,
        device="cpu",
        dtype=tensor_pb2.DATA_TYPE_FLOAT32,
        feature_width=bundle.feature_width,
        default_media=media_pb2.MediaOptions(max_pixels=36864, max_video_pixels=36864, max_frames=32),
        published_media=media_pb2.MediaOptions(**published),
        settings_digest=info.settings_digest,
    )
    assert re.fullmatch("[0-9a-f]{16}", info.settings_digest)


@pytest.mark.parametrize(
    ("request_", "code", "reason", "field"),
    [
        (vision_pb2.EncodeRequest(data=b"x"), Code.INVALID_ARGUMENT, "FIELD_INVALID", "kind"),
        (vision_pb2.EncodeRequest(kind=7, data=b"x"), Code.INVALID_ARGUMENT, "FIELD_INVALID", "kind"),  # type: ignore[arg-type]
        (vision_pb2.EncodeRequest(kind=IMAGE), Code.INVALID_ARGUMENT, "MEDIA_EMPTY", "data"),
        (vision_pb2.EncodeRequest(kind=IMAGE, data=b"text"), Code.INVALID_ARGUMENT, "IMAGE_UNREADABLE", "data"),
        (vision_pb2.EncodeRequest(kind=VIDEO, data=b"text"), Code.INVALID_ARGUMENT, "VIDEO_UNREADABLE", "data"),
        (image(max_pixels=0), Code.INVALID_ARGUMENT, "FIELD_INVALID", "options.max_pixels"),
        (image(fps=float("nan")), Code.INVALID_ARGUMENT, "FIELD_INVALID", "options.fps"),
        (image(min_frames=9, max_frames=4), Code.INVALID_ARGUMENT, "FIELD_INVALID", "options.max_frames"),
        (image(3000, 3000), Code.RESOURCE_EXHAUSTED, "IMAGE_TOO_LARGE", "data"),
    ],
)
async def test_refusals(
    request_: vision_pb2.EncodeRequest, code: Code, reason: str, field: str, bundle: Bundle
) -> None:
    """Each bad request has its own status, of Encode and Describe alike, and the next request works."""
    async with running(bundle, max_image_pixels=1_000_000) as server:
        for call in (server.stub.Encode(request_), server.stub.Describe(request_)):
            failure = await refusal(call)
            assert (failure.code, failure.reason) == (code, reason)
            assert [violation.field for violation in failure.violations] == [field]
        assert (await encode(server.stub, image()))[0].layout.token_count == 6


async def test_fps_is_the_number_that_was_meant(bundle: Bundle) -> None:
    """0.7 frames a second of ten seconds are seven: a float32 on the wire would be a little less than 0.7."""
    data = pictures.video(noises(50), 5)
    options = media_pb2.MediaOptions(fps=0.7, min_frames=1)
    async with running(bundle) as server:
        layout = await server.stub.Describe(vision_pb2.EncodeRequest(kind=VIDEO, data=data, options=options))
    assert layout.grid_thw.t == 4
    assert layout.timestamps[-1] == pytest.approx(49 / 5)  # the seventh frame, alone in its patch


async def test_full_queue(bundle: Bundle) -> None:
    """With every place taken a request is refused with a delay; once one is free the next is served."""
    async with running(bundle, GatedService, max_queue=2) as server:
        await server.service.hold()
        calls = [aiter(server.stub.Encode(image())) for _ in range(2)]
        for call in calls:
            assert (await next_payload(call)).header.layout.token_count == 6
        failure = await refusal(server.stub.Encode(image()))
        assert (failure.code, failure.reason) == (Code.RESOURCE_EXHAUSTED, "QUEUE_FULL")
        assert failure.retry_after is not None
        server.service.encoder.gate.set()
        for call in calls:
            assert len([sent async for sent in payloads(call)]) == 1
        await encode(server.stub, image())


async def test_client_that_leaves(bundle: Bundle) -> None:
    """A client that goes while it waits gives its place back, and its medium is not encoded."""
    async with running(bundle, GatedService, max_queue=2, feature_cache_bytes=0) as server:
        server.service.encoder.batches.clear()
        await server.service.hold()
        first = aiter(server.stub.Encode(image()))
        await anext(first)
        await server.service.held()
        second = server.stub.Encode(image(320, 64))
        await second.read()
        scheduler = server.service._scheduler
        assert (scheduler.held, scheduler.waiting) == (2, 1)
        second.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await second.read()
        while scheduler.held == 2:  # noqa: ASYNC110  # the server has no event for a free place
            await asyncio.sleep(0.001)
        assert scheduler.waiting == 0
        server.service.encoder.gate.set()
        assert len([sent async for sent in payloads(first)]) == 1
        await encode(server.stub, image())
        assert server.service.encoder.batches == [[24], [24]]


async def test_client_that_leaves_in_the_middle_of_the_features(bundle: Bundle) -> None:
    """A client that stops reading and goes gives its place back, too."""
    async with running(bundle) as server:
        call = server.stub.Encode(image(1184, 1184, max_pixels=1184 * 1184))
        await call.read()
        await call.read()
        call.cancel()
        while server.service._scheduler.held:  # noqa: ASYNC110  # the server has no event for a free place
            await asyncio.sleep(0.001)
        await encode(server.stub, image())


async def test_deadline(bundle: Bundle) -> None:
    """A request whose deadline passes while it waits gives its place back."""
    async with running(bundle, GatedService) as server:
        await server.service.hold()
        failure = await refusal(server.stub.Encode(image(), timeout=0.3))
        assert failure.code is Code.DEADLINE_EXCEEDED
        while server.service._scheduler.held:  # noqa: ASYNC110  # as above
            await asyncio.sleep(0.001)
        server.service.encoder.gate.set()
        await encode(server.stub, image())


async def test_health_and_graceful_stop(bundle: Bundle) -> None:
    """Stopped while it encodes, the server turns unhealthy, finishes what it has begun, and ends."""
    async with running(bundle, GatedService) as server:
        watch = server.health.Watch(health_pb2.HealthCheckRequest(service="vlm.v1.VisionEncoder"))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        await server.service.hold()
        call = aiter(server.stub.Encode(image()))
        header = (await anext(call)).header
        await server.service.held()
        server.stop.set()
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        watch.cancel()
        server.service.encoder.gate.set()
        chunks = [response.chunk async for response in call]
        assert sum(len(chunk.data) for chunk in chunks) == header.layout.token_count * header.features.shape[1] * 4
        await server.server


async def test_stop_does_not_wait_for_ever(bundle: Bundle, tmp_path: Path) -> None:
    """What is still encoded at the end of the grace period is cut off, and the server ends."""
    async with running(bundle, GatedService, grace_seconds=0.2) as server:
        await server.service.hold()
        call = aiter(server.stub.Encode(image()))
        await anext(call)
        await server.service.held()
        server.stop.set()
        failure = await refusal(call)
        assert failure.code in (Code.UNAVAILABLE, Code.CANCELLED)
        server.service.encoder.gate.set()
        await server.server


async def test_a_layout_tells_what_was_done(bundle: Bundle) -> None:
    """Sizes before and after resizing, and of a video the time of each frame that was sampled."""
    data = pictures.video(noises(10, 96, 64), 5)
    async with running(bundle) as server:
        picture = await server.stub.Describe(image(320, 160, max_pixels=64 * 128))
        options = media_pb2.MediaOptions(fps=2.0, max_video_pixels=4 * 64 * 64)
        clip = await server.stub.Describe(vision_pb2.EncodeRequest(kind=VIDEO, data=data, options=options))
    assert (picture.size_given.width, picture.size_given.height) == (320, 160)
    assert (picture.size_used.width, picture.size_used.height) == (128, 64)
    assert not picture.frame_times
    assert (clip.size_given.width, clip.size_given.height) == (96, 64)
    assert (clip.size_used.width, clip.size_used.height) == (16 * clip.grid_thw.w, 16 * clip.grid_thw.h)
    assert list(clip.frame_times) == pytest.approx([0.0, 0.6, 1.2, 1.8])


async def tokens_of(server: Any, **options: Any) -> int:
    """Tokens of a large picture with these options."""
    return int((await server.stub.Describe(image(640, 640, **options))).token_count)


async def test_the_default_budget(bundle: Bundle) -> None:
    """It bounds pictures of requests that name no bound; a request may name a bound, or a budget."""
    async with running(bundle, default_max_pixels=128 * 128) as server:
        assert await tokens_of(server) == 16
        assert await tokens_of(server, max_pixels=64 * 64) == 4
        assert await tokens_of(server, max_pixels=256 * 256) == 64
        assert await tokens_of(server, min_pixels=256 * 256) == 64
        assert await tokens_of(server, detail=media_pb2.DETAIL_HIGH) == 16
        assert await tokens_of(server, detail=media_pb2.DETAIL_LOW) == 16
        assert await tokens_of(server, detail=media_pb2.DETAIL_ORIGINAL) == 36
    async with running(bundle, default_max_pixels="published") as server:
        assert await tokens_of(server) == 36
    async with running(bundle, default_max_pixels=640 * 640) as server:
        assert await tokens_of(server) == 400
        assert await tokens_of(server, detail=media_pb2.DETAIL_LOW) == 256


async def test_the_default_budget_of_videos(bundle: Bundle) -> None:
    """It bounds frames and pixels of all of them."""
    data = pictures.video(noises(20, 64, 64), 5)
    settings = {"default_max_frames": 4, "default_max_video_pixels": 4 * 32 * 64}
    async with running(bundle, **settings) as server:
        layout = await server.stub.Describe(vision_pb2.EncodeRequest(kind=VIDEO, data=data))
        options = media_pb2.MediaOptions(max_frames=6, detail=media_pb2.DETAIL_ORIGINAL)
        original = await server.stub.Describe(vision_pb2.EncodeRequest(kind=VIDEO, data=data, options=options))
    assert len(layout.frame_times) == 4
    assert len(layout.frame_times) * layout.size_used.width * layout.size_used.height <= 4 * 32 * 64
    assert len(original.frame_times) == 6
    assert original.size_used.width * original.size_used.height > 32 * 64


async def test_a_budget_and_its_number_share_features(bundle: Bundle) -> None:
    """A request without options and one that names the default's numbers are one entry of the cache."""
    async with running(bundle, GatedService) as server:
        server.service.encoder.batches.clear()
        for options in ({}, {"max_pixels": 36864}, {"detail": media_pb2.DETAIL_HIGH}):
            await encode(server.stub, image(**options))
        assert len(server.service.encoder.batches) == 1


async def test_replicas_that_are_set_otherwise_refuse(bundle: Bundle) -> None:
    """A caller that has learnt the settings of another replica is told so before any work is done."""
    async with running(bundle) as server, running(bundle, default_max_pixels=4096) as other:
        digests = [
            (await one.stub.GetEncoder(vision_pb2.GetEncoderRequest())).settings_digest for one in (server, other)
        ]
        request = image()
        request.settings_digest = digests[0]
        await encode(server.stub, request)
        failure = await refusal(other.stub.Encode(request))
    assert digests[0] != digests[1]
    assert (failure.code, failure.reason) == (Code.FAILED_PRECONDITION, "ENCODER_SETTINGS_DIFFER")
    assert all(digest in failure.message for digest in digests)


async def test_progress_is_told_while_the_encoder_works(bundle: Bundle) -> None:
    """Until the features are there a message comes each second, with the patches of the medium."""
    async with running(bundle, GatedService) as server:
        await server.service.hold()
        responses = aiter(server.stub.Encode(image()))
        assert (await next_payload(responses)).HasField("header")
        progress = (await anext(responses)).progress
        assert (progress.patches_done, progress.patches_total) == (0, 24)
        server.service.encoder.gate.set()
        assert (await next_payload(responses)).HasField("chunk")


async def test_what_cannot_be_encoded_in_time_is_refused(bundle: Bundle) -> None:
    """The refusal tells the estimate and a size that would do, which does; without a deadline nothing is refused."""
    async with running(bundle, GatedService, default_max_pixels=1 << 20) as server:
        scheduler = server.service._scheduler
        cost = scheduler._encoder.cost
        scheduler._rate = cost.frame(4096) / 1000.0  # as if such a picture took a thousand seconds
        server.service.encoder.batches.clear()
        failure = await refusal(server.stub.Encode(image(1024, 1024), timeout=100))
        assert (failure.code, failure.reason) == (Code.RESOURCE_EXHAUSTED, "ENCODING_TOO_SLOW")
        assert failure.violations[0].field == "data"
        assert failure.retry_after is None
        assert "about 1000 seconds" in failure.message
        assert "max_pixels" in failure.message
        pixels = int(failure.metadata["limit"])
        assert 16_384 < pixels < 1 << 20
        assert server.service.encoder.batches == []  # not even begun: a forward pass cannot be left at once
        # What is known from the start alone is trusted less than what media have shown.
        assert not scheduler.proven
        scheduler._rate = cost.frame(4096) / 200.0
        await encode(server.stub, image(1024, 1024), seconds=100)
        scheduler._rate = cost.frame(4096) / 200.0
        assert scheduler.proven
        failure = await refusal(server.stub.Encode(image(1024, 992), timeout=100))
        assert failure.reason == "ENCODING_TOO_SLOW"
        header, _ = await encode(server.stub, image(1024, 1024, max_pixels=pixels), seconds=100)
        assert header.layout.size_used.width * header.layout.size_used.height <= pixels
        await encode(server.stub, image(1024, 960))


async def test_a_queue_that_is_too_long_is_told_apart(bundle: Bundle) -> None:
    """A medium that alone would be in time is refused with a delay, since it is those before it that take too long."""
    async with running(bundle, GatedService, default_max_pixels=1 << 20) as server:
        await server.service.hold()
        first = server.stub.Encode(image(1024, 1024))
        await first.read()
        await server.service.held()
        scheduler = server.service._scheduler
        scheduler._rate = scheduler._encoder.cost.frame(4096) / 1000.0
        failure = await refusal(server.stub.Encode(image(64, 64), timeout=100))
        assert (failure.code, failure.reason) == (Code.RESOURCE_EXHAUSTED, "ENCODER_BUSY")
        assert failure.retry_after is not None
        assert 800 < failure.retry_after < 1000
        server.service.encoder.gate.set()
        first.cancel()
