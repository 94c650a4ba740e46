"""What the vision service needs of a model family; `vision_service.families` has the families."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image

from serving.bundle import Bundle
from vision_service.cost import Cost
from vision_service.media import Advance, Cancelled, Grid, Kind, Options, PreparedMedium
from vision_service.video import VideoLimits


@dataclass(frozen=True)
class PreprocessLimits:
    """What a medium may be at most.

    Attributes:
        image_pixels: An image's pixels before it is resized.
        video: A video's limits before it is resized.
        patches: Patches after resizing, of either.
    """

    image_pixels: int
    video: VideoLimits
    patches: int


class Preprocessor(Protocol):
    """Turns files into patches, as the family's processors in transformers do. Several threads call it at once."""

    @property
    def published(self) -> Options:
        """The checkpoint's own settings, all of them."""

    def prepare(self, kind: Kind, data: bytes, options: Options, cancelled: Cancelled = ..., /) -> PreparedMedium:
        """Decode, resize and cut one medium.

        Args:
            kind: What the bytes are.
            data: The file's bytes.
            options: How they become pixels.
            cancelled: Called now and then; True stops the work.

        Raises:
            ServiceError: The medium is refused; `data` or an option is named, with a stable reason.
            WorkCancelledError: `cancelled` returned True.
        """

    def token_count(self, grid: Grid) -> int:
        """Rows of features, and so tokens of the prompt, of a medium."""

    def size_used(self, grid: Grid) -> tuple[int, int]:
        """Width and height in pixels of a medium's resized frames."""

    def pixels(self, kind: Kind, patches: int) -> int:
        """Pixels of a resized medium of so many patches; of a video, those of all its frames."""


class Encoder(Protocol):
    """Patches in, features out. One thread at a time uses it."""

    @property
    def cost(self) -> Cost:
        """What encoding costs, for estimates."""

    @property
    def feature_width(self) -> int:
        """Columns of the features, as the bundle's decoder takes them."""

    @property
    def device(self) -> torch.device:
        """Where it runs."""

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in; int8 where its layers do."""

    @property
    def own_attention(self) -> bool:
        """Whether attention is computed by our operators."""

    @property
    def out_dtype(self) -> torch.dtype:
        """Type of the features."""

    def blank(self, side: int = ...) -> PreparedMedium:
        """An empty image of `side` x `side` tokens: for warming up, and for measuring the speed."""

    def encode(
        self, media: Sequence[PreparedMedium], cancelled: Cancelled = ..., advance: Advance = ..., /
    ) -> list[torch.Tensor]:
        """Encode media in one forward pass; the features of a medium, and of a frame, do not depend on the others.

        Args:
            media: At least one.
            cancelled: Called before each layer; True stops the work.
            advance: Called after each layer with the share that is done.

        Returns:
            For each medium [tokens, feature_width] in `out_dtype` on the CPU, in memory of its own.

        Raises:
            WorkCancelledError: `cancelled` returned True.
        """


class LoadEncoder(Protocol):
    """Loads an encoder from a bundle's `vision` directory."""

    def __call__(
        self, folder: Path, /, *, device: torch.device, dtype: torch.dtype, out_dtype: torch.dtype, operators: bool
    ) -> Encoder:
        """Load it.

        Args:
            folder: Holds config.json and model.safetensors.
            device: Where it runs.
            dtype: What it computes in; int8: its layers in 8 bits, by our operators.
            out_dtype: Type of the features.
            operators: Whether our own may be used, where they can be.

        Raises:
            BundleError: A file is missing or damaged, or the weights are not those of the config.
            OperatorsError: It is to compute in int8, and the operators cannot be used.
        """


@dataclass(frozen=True)
class Family:
    """A model family.

    Attributes:
        load_encoder: Loads the encoder of a bundle.
        make_preprocessor: Reads a bundle's preprocessor settings. Raises BundleError where a file is missing or asks
            for what is not done here.
        fit_picture: An image as the encoder of a bundle takes it, resized to the nearest size that whole patches fill
            and to no other limit: for measuring.
    """

    load_encoder: LoadEncoder
    make_preprocessor: Callable[[Bundle, PreprocessLimits], Preprocessor]
    fit_picture: Callable[[Bundle, Image.Image], PreparedMedium]
