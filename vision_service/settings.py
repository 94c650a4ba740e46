"""The settings of the vision service: environment variables VISION_*, or flags of the same names."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field
from pydantic_settings import SettingsConfigDict

from serving.media import MAX_FRAMES, MAX_PIXELS
from serving.settings import ServerSettings


def _bound(most: int) -> BeforeValidator:
    """Validates a bound; one message for all invalid values."""

    def check(value: object) -> object:
        if value in (None, "published") or (str(value).isdecimal() and 1 <= int(str(value)) <= most):
            return value
        raise ValueError(f"is {value} and must be a whole number from 1 to {most}, or published")

    return BeforeValidator(check)


PixelBound = Annotated[Annotated[int, Field(ge=1, le=MAX_PIXELS)] | Literal["published"] | None, _bound(MAX_PIXELS)]
FrameBound = Annotated[Annotated[int, Field(ge=1, le=MAX_FRAMES)] | Literal["published"] | None, _bound(MAX_FRAMES)]
"""A bound of the default budget: a number, the checkpoint's own, or None for the device's."""


class VisionSettings(ServerSettings):
    """The settings of one vision service."""

    model_config = SettingsConfigDict(env_prefix="VISION_", cli_prog_name="vision_service")

    port: int = Field(50061, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    bundle: Path = Field(description="Directory of the bundle.")
    verify: bool = Field(
        True,
        description="Compare the encoder's files with their digests before loading them; off: a damaged file may give "
        "wrong features.",
    )

    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu, cuda or cuda:N.")
    dtype: Literal["auto", "float32", "bfloat16", "float16", "int8"] = Field(
        "auto",
        description="Type in which the encoder computes. auto, on a CPU: the fastest of int8 (AVX-512 BF16, no AMX), "
        "bfloat16 (AVX-512 BF16, AMX) and float32 whose divergence, measured by the export, is small. On a GPU, and "
        "without measurements: bfloat16 if the encoder is stored in it and the device multiplies it, else float32. "
        "int8 quantizes the encoder's layers to 8 bits and needs a CPU with AVX-512 BF16.",
    )
    wire_dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="Type in which features are sent; 16-bit types save bandwidth and lose precision."
    )
    operators: bool = Field(
        True,
        description="Compute attention in bfloat16 with Triptych's own operators, if the CPU has AVX-512 BF16 and no "
        "AMX; the log shows whether they are used. Otherwise PyTorch's are used. int8 requires them.",
    )
    threads: int = Field(0, ge=0, le=1024, description="CPU threads of the encoder; 0: all cores that it may use.")
    preprocess_workers: int = Field(2, ge=1, le=64, description="Most media that are decoded at once.")

    max_queue: int = Field(
        64, ge=1, description="Most requests at once, from arrival until their features are sent; more are refused."
    )
    max_batch_patches: int = Field(
        0,
        ge=0,
        description="Waiting media are encoded together up to this many patches; 0: 256 on a CPU, 16384 on a GPU.",
    )
    feature_cache_bytes: int | None = Field(
        None,
        ge=0,
        description="Size of the cache of features for later requests with the same medium and options; 0: off; not "
        "set: 16384 rows.",
    )
    default_max_pixels: PixelBound = Field(
        None,
        description="Largest area of a resized image, in pixels, if a request sets none; not set: 1048576 on a "
        "CPU (1024 tokens of Qwen3-VL), published on a GPU. All replicas must agree.",
    )
    default_max_video_pixels: PixelBound = Field(
        None,
        description="Largest volume of a resized video, in pixels of all its frames, if a request sets none; not "
        "set: 2097152 on a CPU, published on a GPU. All replicas must agree.",
    )
    default_max_frames: FrameBound = Field(
        None,
        description="Most frames sampled from a video if a request sets none; not set: 32 on a CPU, published on a "
        "GPU. All replicas must agree.",
    )
    max_patches: int = Field(
        # The most patches with the published preprocessor settings (4096 x 4096 pixels).
        65_536,
        ge=4,
        description="Most patches of an image or video after resizing.",
    )

    max_image_pixels: int = Field(
        # 134 million: a 108-megapixel phone passes. Decoded, that is 512 MiB for each preprocessing worker.
        1 << 27,
        ge=1,
        description="Most pixels of an image, read from its header before it is decoded.",
    )
    max_video_seconds: float = Field(1800.0, gt=0, description="Longest video.")
    max_video_frames: int = Field(
        108_000, ge=1, description="Most frames of a video file, sampled or not: each must be decoded."
    )
    max_sampled_frames: int = Field(
        # The most frames with the published preprocessor settings.
        768,
        ge=1,
        description="Most frames sampled from a video.",
    )
    max_video_pixels: int = Field(1 << 24, ge=1, description="Most pixels of a video's frame (4096 x 4096).")
