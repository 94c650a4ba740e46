"""Preprocesses images for the encoder, as transformers' own processor does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  # the usual name
from numpy.typing import NDArray
from PIL import Image

from serving.bundle import Bundle
from serving.errors import Reason, invalid, too_large
from serving.media import not_taken
from vision_service.families.phi4_multimodal.crops import Canvas, Crops, canvas_of, token_count
from vision_service.families.phi4_multimodal.settings import Settings, read_settings
from vision_service.family import PreprocessLimits
from vision_service.images import decode_image
from vision_service.media import PATH, Cancelled, Grid, Kind, Options, PreparedMedium

S = TypeVar("S", bound=np.generic)

_PADDING = 255


@dataclass(frozen=True, kw_only=True)
class Picture(PreparedMedium):
    """An image, ready to be encoded. `patches` has those of its crops, one crop after another.

    Attributes:
        crops: Its crops.
        overview: [side x side, channels x patch x patch], float32: the encoder's input for the overview. It is
            interpolated after normalization, so its values are no levels.
    """

    crops: Crops
    overview: NDArray[np.float32]

    def pixel_values(self) -> NDArray[np.float32]:
        """The encoder's input, [patches of the overview and of the crops, channels x patch x patch]."""
        return np.concatenate([self.overview, super().pixel_values()])


class Preprocessor:
    """Converts files to patches. It has no state, so several threads may call it at once.

    Args:
        bundle: The bundle with the preprocessor settings and patch sizes.
        limits: Limits of media.

    Raises:
        BundleError: The settings file is missing or has unsupported settings.
    """

    def __init__(self, bundle: Bundle, limits: PreprocessLimits) -> None:
        self._limits = limits
        self._settings = read_settings(bundle)

    @property
    def published(self) -> Options:
        """The checkpoint's own setting: as many pixels as its crops have. There is no least size."""
        return Options(max_pixels=self._settings.most_crops * self._settings.crop**2)

    def token_count(self, grid: Grid) -> int:
        """Number of feature rows of an image."""
        return token_count(grid, self._settings.side)

    def pixels(self, kind: Kind, patches: int) -> int:
        """Pixels of a resized image of `patches` patches."""
        del kind  # all are images
        return patches * self._settings.patch**2

    def prepare(
        self, kind: Kind, data: bytes, options: Options, cancelled: Cancelled = lambda: False
    ) -> PreparedMedium:
        """Decode an image, resize it and split it into patches.

        `max_pixels` becomes a number of crops: at least one, and at most the checkpoint's own. `min_pixels` has no
        effect: an image always fills its canvas in one direction.

        Args:
            kind: Must be an image.
            data: The file's bytes.
            options: Preprocessing options.
            cancelled: Not called: an image is decoded at once.

        Raises:
            ServiceError: The medium is refused; names `kind`, `data` or an option, with a stable reason.
        """
        if kind != "image":
            raise invalid("kind", f"is {kind}; that {not_taken(['image'])}", reason=Reason.MEDIA_NOT_SUPPORTED)
        if not data:
            raise invalid(PATH, "is empty; send the image's bytes", reason=Reason.MEDIA_EMPTY)
        most = self._settings.most_crops
        if options.max_pixels is not None:
            most = min(most, max(1, options.max_pixels // self._settings.crop**2))

        def canvas(width: int, height: int) -> Canvas:
            found = self._canvas(width, height, most)
            self._check_patches(found)
            return found

        def check(width: int, height: int) -> None:
            canvas(width, height)

        picture = decode_image(data, max_pixels=self._limits.image_pixels, check=check)
        return prepared(picture, canvas(*picture.size), self._settings)

    def _canvas(self, width: int, height: int, most: int) -> Canvas:
        try:
            return canvas_of(width, height, self._settings.crop, most)
        except ValueError as error:
            more = ", or raise max_pixels" if most < self._settings.most_crops else ""
            raise invalid(
                PATH,
                f"is an image of {width} x {height} pixels, which {error}; cut the longer side{more}",
                reason=Reason.IMAGE_ASPECT_RATIO,
            ) from error

    def _check_patches(self, canvas: Canvas) -> None:
        patches = (1 + canvas.columns * canvas.rows) * self._settings.side**2
        if patches > self._limits.patches:
            raise too_large(
                PATH,
                f"is an image that becomes {patches} patches, over the limit of {self._limits.patches} (max_patches); "
                "lower max_pixels",
                reason=Reason.IMAGE_TOO_MANY_PATCHES,
                limit=self._limits.patches,
            )


def fit_picture(bundle: Bundle, picture: Image.Image) -> PreparedMedium:
    """Prepare an image in as many crops as the checkpoint allows.

    Args:
        bundle: The bundle with the preprocessor settings.
        picture: The image in RGB.
    """
    settings = read_settings(bundle)
    return prepared(picture, canvas_of(*picture.size, settings.crop, settings.most_crops), settings)


def prepared(picture: Image.Image, canvas: Canvas, settings: Settings) -> Picture:
    """Resize an image to its canvas and split it into patches.

    Args:
        picture: The image in RGB.
        canvas: Its canvas.
        settings: The preprocessor file.
    """
    crop, patch, side = settings.crop, settings.patch, settings.side
    width, height = canvas.size
    pixels = np.full((canvas.rows * crop, canvas.columns * crop, 3), _PADDING, np.uint8)
    pixels[:height, :width] = _resized(picture, width, height)
    crops = Crops(
        side,
        canvas.rows * side - (canvas.rows * crop - height) // patch,
        canvas.columns * side - (canvas.columns * crop - width) // patch,
    )
    patches = [
        _patches(pixels[row * crop :, column * crop :], tile.height, tile.width, patch)
        for row, tiles in enumerate(crops.tiles)
        for column, tile in enumerate(tiles)
    ]
    overview = _patches(_overview(pixels, settings), side, side, patch)
    return Picture(
        "image",
        crops.grid,
        np.concatenate(patches),
        settings.levels,
        size_given=picture.size,
        size_used=canvas.size,
        crops=crops,
        overview=overview.reshape(len(overview), -1),
    )


def _resized(picture: Image.Image, width: int, height: int) -> NDArray[np.uint8]:
    """The image as [height, width, 3]: bilinear with antialiasing on bytes, as torchvision does it on a CPU."""
    pixels = np.array(picture)
    if picture.size == (width, height):
        return pixels
    planes = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    resized = F.interpolate(planes, size=(height, width), mode="bilinear", align_corners=False, antialias=True)
    return resized[0].permute(1, 2, 0).numpy()


def _overview(pixels: NDArray[np.uint8], settings: Settings) -> NDArray[np.float32]:
    """The canvas in one crop, [crop, crop, 3]: bicubic without antialiasing, after normalization."""
    crop = settings.crop
    seen = np.empty((crop, crop, 3), np.float32)
    for channel, levels in enumerate(settings.levels):  # one at a time: as floats a large canvas has 86 MB
        plane = np.take(levels, pixels[..., channel])
        if plane.shape != (crop, crop):
            whole = torch.from_numpy(plane)[None, None]
            plane = F.interpolate(whole, size=(crop, crop), mode="bicubic", align_corners=False)[0, 0].numpy()
        seen[..., channel] = plane
    return seen


def _patches(pixels: NDArray[S], height: int, width: int, patch: int) -> NDArray[S]:
    """The patches in a corner of an image [rows, columns, 3], as [height x width, 3, 1, patch, patch]."""
    cut = pixels[: height * patch, : width * patch].reshape(height, patch, width, patch, 3)
    return np.ascontiguousarray(cut.transpose(0, 2, 4, 1, 3)).reshape(height * width, 3, 1, patch, patch)
