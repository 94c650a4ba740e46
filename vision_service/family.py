"""The interface of a model family in the vision service; `vision_service.families` has the families."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image

from serving.bundle import Bundle
from vision_service.clip import VideoLimits
from vision_service.cost import Cost
from vision_service.media import Advance, Cancelled, Grid, Kind, Options, PreparedMedium


@dataclass(frozen=True)
class PreprocessLimits:
    """Limits of media.

    Attributes:
        image_pixels: Most pixels of an image before resizing.
        video: Limits of a video before resizing.
        patches: Most patches of a medium after resizing.
    """

    image_pixels: int
    video: VideoLimits
    patches: int


class Preprocessor(Protocol):
    """Converts files to patches, as the family's processors in transformers do. Several threads call it at once."""

    @property
    def published(self) -> Options:
        """All of the checkpoint's own settings."""

    def prepare(self, kind: Kind, data: bytes, options: Options, cancelled: Cancelled = ..., /) -> PreparedMedium:
        """Decode one medium, resize it and split it into patches.

        Args:
            kind: Image or video.
            data: The file's bytes.
            options: Preprocessing options.
            cancelled: Called repeatedly; True stops the work.

        Raises:
            ServiceError: The medium is refused; names `data` or an option, with a stable reason.
            WorkCancelledError: `cancelled` returned True.
        """

    def token_count(self, grid: Grid) -> int:
        """Number of feature rows, and so of prompt tokens, of a medium."""

    def pixels(self, kind: Kind, patches: int) -> int:
        """Pixels of a resized medium of `patches` patches; of a video, of all its frames."""


class Encoder(Protocol):
    """Computes features from patches. For one thread at a time."""

    @property
    def cost(self) -> Cost:
        """The cost of encoding, for estimates."""

    @property
    def feature_width(self) -> int:
        """Width of a feature row, as expected by the bundle's decoder."""

    @property
    def device(self) -> torch.device:
        """Device of the encoder."""

    @property
    def dtype(self) -> torch.dtype:
        """Type in which it computes; int8 if its layers are in 8 bits."""

    @property
    def own_attention(self) -> bool:
        """Whether attention is computed by our operators."""

    @property
    def out_dtype(self) -> torch.dtype:
        """Type of the features."""

    def blank(self, side: int = ...) -> PreparedMedium:
        """An empty image of `side` x `side` tokens, for warm-up and for measuring the speed."""

    def encode(
        self, media: Sequence[PreparedMedium], cancelled: Cancelled = ..., advance: Advance = ..., /
    ) -> list[torch.Tensor]:
        """Encode media in one forward pass; the features of a medium, and of a frame, do not depend on the others.

        Args:
            media: At least one.
            cancelled: Called before each layer; True stops the work.
            advance: Called after each layer with the finished share.

        Returns:
            For each medium [tokens, feature_width] in `out_dtype` on the CPU, in its own memory.

        Raises:
            WorkCancelledError: `cancelled` returned True.
        """


class LoadEncoder(Protocol):
    """Loads an encoder from a bundle's `vision` directory."""

    def __call__(
        self, folder: Path, /, *, device: torch.device, dtype: torch.dtype, out_dtype: torch.dtype, operators: bool
    ) -> Encoder:
        """Load the encoder.

        Args:
            folder: Holds config.json and model.safetensors.
            device: Device of the encoder.
            dtype: Type in which it computes; int8: layers in 8 bits, by our operators.
            out_dtype: Type of the features.
            operators: Whether our own operators may be used, if the processor supports them.

        Raises:
            BundleError: A file is missing or damaged, or the weights are not those of the config.
            OperatorsError: The type is int8, and the operators cannot be used.
        """


@dataclass(frozen=True)
class Family:
    """A model family.

    Attributes:
        load_encoder: Loads the encoder of a bundle.
        make_preprocessor: Reads a bundle's preprocessor settings. Raises BundleError if a file is missing or has
            unsupported settings.
        fit_picture: Prepares an image in the nearest size of whole patches, without limits on pixels, for measurements.
    """

    load_encoder: LoadEncoder
    make_preprocessor: Callable[[Bundle, PreprocessLimits], Preprocessor]
    fit_picture: Callable[[Bundle, Image.Image], PreparedMedium]
