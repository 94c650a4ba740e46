"""The life cycle of the vision service: load, warm up, serve, stop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import grpc
import structlog
import torch

from serving.bundle import Bundle
from serving.bundle_error import BundleError, BundleProblem
from serving.cores import usable_cores
from serving.memory import release_freed_memory, usable_memory
from serving.server import Service, StartError
from vision_service.budget import default_budget, published_budget
from vision_service.cache import FeatureCache
from vision_service.clip import VideoLimits
from vision_service.deadline import DeadlineCheck
from vision_service.dtype import choose_dtype
from vision_service.encodings import Encodings
from vision_service.families.registry import family_of
from vision_service.family import Encoder, PreprocessLimits, Preprocessor
from vision_service.operators import OperatorsError
from vision_service.scheduler import Scheduler, UnusableEncoderError
from vision_service.servicer import VisionServicer, describe
from vision_service.settings import VisionSettings
from vlm.v1 import vision_pb2, vision_pb2_grpc

log = structlog.get_logger()

# On a CPU one image of ordinary size uses all cores. Measured with the 4B's encoder: packing seven images of 36 patches
# makes them a third faster; beyond some 250 patches packing has no gain and only delays the first image.
_CPU_BATCH_PATCHES, _GPU_BATCH_PATCHES = 256, 16_384

_CACHED_ROWS = 16_384
"""Default size of the feature cache in rows: the largest picture of the published limits."""


class VisionService(Service):
    """Serves the encoder of one bundle.

    Args:
        settings: The settings.
    """

    name = "vision_service"
    grpc_names = (vision_pb2.DESCRIPTOR.services_by_name["VisionEncoder"].full_name,)
    internal = True

    def __init__(self, settings: VisionSettings) -> None:
        self._settings = settings
        self._scheduler: Scheduler | None = None
        self._servicer: VisionServicer | None = None

    async def start(self, set_serving: Callable[[bool], None]) -> None:
        """Load the bundle's encoder and warm it up."""
        device = choose_device(self._settings.device)
        threads = self._settings.threads or usable_cores()
        try:
            bundle, preprocessor, encoder = await asyncio.to_thread(self._load, device)
        except BundleError as error:
            raise StartError(str(error)) from error
        self._scheduler = Scheduler(
            preprocessor.prepare,
            encoder,
            max_queue=self._settings.max_queue,
            max_batch_patches=self._settings.max_batch_patches
            or (_CPU_BATCH_PATCHES if device.type == "cpu" else _GPU_BATCH_PATCHES),
            workers=self._settings.preprocess_workers,
            threads=threads,
        )
        try:
            await self._scheduler.start()
        except UnusableEncoderError as error:
            raise StartError(
                f"the encoder of the bundle {bundle.root} cannot be used, since {error}: use another dtype, or export "
                "the bundle again"
            ) from error
        release_freed_memory()  # used while loading: for the 2B in int8 1.2 of 2.1 GB
        cache_bytes = self._settings.feature_cache_bytes
        if cache_bytes is None:
            cache_bytes = _CACHED_ROWS * encoder.feature_width * encoder.out_dtype.itemsize
        check = DeadlineCheck(self._scheduler, preprocessor)
        encodings = Encodings(self._scheduler, FeatureCache(cache_bytes), check)
        info = describe(
            bundle,
            encoder,
            published=published_budget(preprocessor.published),
            default=default_budget(
                preprocessor.published,
                on_cpu=device.type == "cpu",
                max_pixels=self._settings.default_max_pixels,
                max_video_pixels=self._settings.default_max_video_pixels,
                max_frames=self._settings.default_max_frames,
            ),
        )
        self._servicer = VisionServicer(
            bundle,
            preprocessor=preprocessor,
            encoder=encoder,
            info=info,
            scheduler=self._scheduler,
            encodings=encodings,
        )
        log.info(
            "encoder loaded",
            model=bundle.model.id,
            device=str(encoder.device),
            dtype=str(encoder.dtype).removeprefix("torch."),
            threads=threads if device.type == "cpu" else None,
            own_attention=encoder.own_attention,
            max_pixels=info.default_media.max_pixels,
            max_video_pixels=info.default_media.max_video_pixels,
            max_frames=info.default_media.max_frames,
        )

    def register(self, server: grpc.aio.Server) -> None:
        """Add the servicer."""
        if self._servicer is None:
            raise RuntimeError("start comes before register")
        vision_pb2_grpc.add_VisionEncoderServicer_to_server(self._servicer, server)

    async def stop(self) -> None:
        """End the threads."""
        if self._scheduler is not None:
            await self._scheduler.stop()

    def _load(self, device: torch.device) -> tuple[Bundle, Preprocessor, Encoder]:
        settings = self._settings
        bundle = Bundle.open(settings.bundle, verify=settings.verify, folder="vision")
        bundle.check_memory("vision", usable_memory())
        family = family_of(bundle)
        dtype, reason = choose_dtype(
            settings.dtype, device, bundle.vision_dir, measured=bundle.encoder_types, operators=settings.operators
        )
        log.info("type chosen", dtype=str(dtype).removeprefix("torch."), reason=reason)
        preprocessor = family.make_preprocessor(
            bundle,
            PreprocessLimits(
                image_pixels=settings.max_image_pixels,
                video=VideoLimits(
                    seconds=settings.max_video_seconds,
                    frames=settings.max_video_frames,
                    sampled=settings.max_sampled_frames,
                    pixels=settings.max_video_pixels,
                ),
                patches=settings.max_patches,
            ),
        )
        if dtype is torch.int8 and not settings.operators:
            raise StartError("dtype int8 is computed by the operators, and they are turned off; use another dtype")
        try:
            encoder = family.load_encoder(
                bundle.vision_dir,
                device=device,
                dtype=dtype,
                out_dtype=getattr(torch, settings.wire_dtype),
                operators=settings.operators,
            )
        except OperatorsError as error:
            raise StartError(f"dtype int8 needs operators that cannot be used: {error}; use another dtype") from error
        if encoder.feature_width != bundle.feature_width:
            raise BundleError(
                BundleProblem.FEATURE_WIDTH,
                root=bundle.root,
                width=encoder.feature_width,
                expected=bundle.feature_width,
            )
        return bundle, preprocessor, encoder


def choose_device(name: str) -> torch.device:
    """The device that a setting selects.

    Args:
        name: auto, cpu, cuda or cuda:N.

    Raises:
        StartError: The device does not exist.
    """
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise StartError(
            f"device {name} is asked for, and this machine or this build of PyTorch has no CUDA; use --device cpu"
        )
    index = int(name.partition(":")[2] or 0)
    if index >= torch.cuda.device_count():
        raise StartError(f"device {name} is asked for, and this machine has {torch.cuda.device_count()} CUDA devices")
    return torch.device("cuda", index)
