"""The settings of a checkpoint's preprocessor file, and whether they are supported."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from serving.bundle import Bundle
from serving.bundle_error import BundleError, BundleProblem
from serving.families import Phi4MultimodalVision, VisionInfo
from vision_service.families.levels import fused_levels
from vision_service.media import Kind

_ALWAYS: dict[str, Any] = {"do_rescale": True, "do_normalize": True, "do_convert_rgb": True, "resample": 3}
"""The supported settings; a checkpoint with other ones is refused."""

_MOST_CROPS = 256


class Defaults:
    """The attributes of transformers' `Phi4MultimodalImageProcessor`, whose module needs torchvision."""

    size: ClassVar = {"height": 448, "width": 448}
    patch_size = 14
    dynamic_hd = 36
    image_mean: ClassVar = [0.5, 0.5, 0.5]
    image_std: ClassVar = [0.5, 0.5, 0.5]
    rescale_factor = 1 / 255
    resample = 3
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True


@dataclass(frozen=True)
class Settings:
    """The preprocessor file, with the defaults that transformers gives it.

    Attributes:
        crop: Edge of a crop in pixels.
        patch: Edge of a patch.
        most_crops: Most crops of an image.
        levels: What each byte of a colour becomes, [channels, 256].
    """

    crop: int
    patch: int
    most_crops: int
    levels: NDArray[np.float32]

    @property
    def side(self) -> int:
        """Patches along an edge of a crop."""
        return self.crop // self.patch


def read_settings(bundle: Bundle) -> Settings:
    """Read the preprocessor file of a bundle.

    Raises:
        BundleError: It is missing or damaged, or has unsupported settings.
    """
    path = bundle.vision_dir / "preprocessor_config.json"
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise BundleError(BundleProblem.FILE_DAMAGED, path=path, error=error) from error
    return settings_of("image", config, path, bundle.vision)


def settings_of(kind: Kind, config: Mapping[str, Any], path: Path, vision: VisionInfo) -> Settings:
    """What a preprocessor file says; what it leaves out is as the processor's class has it.

    Args:
        kind: What is preprocessed, an image.
        config: The file's content.
        path: Where it lies, for the message.
        vision: Whose patches are to be made.

    Raises:
        BundleError: It has unsupported settings.
    """
    if kind != "image" or not isinstance(vision, Phi4MultimodalVision):
        raise TypeError(f"settings for {kind} and an encoder of {type(vision).__name__} are not this family's")

    def setting(name: str) -> Any:
        value = config.get(name)
        return getattr(Defaults, name) if value is None else value

    expected = {**_ALWAYS, "patch_size": vision.patch_size}
    expected["size"] = {"height": vision.crop_size, "width": vision.crop_size}
    for name, value in expected.items():
        if setting(name) != value:
            raise BundleError(
                BundleProblem.SETTING_UNSUPPORTED, path=path, name=name, found=setting(name), supported=value
            )
    most = setting("dynamic_hd")
    if type(most) is not int or not 1 <= most <= _MOST_CROPS:
        raise BundleError(
            BundleProblem.SETTING_UNSUPPORTED, path=path, name="dynamic_hd", found=most, supported=f"1 to {_MOST_CROPS}"
        )
    try:
        levels = fused_levels(setting("image_mean"), setting("image_std"), setting("rescale_factor"))
        if levels.shape != (vision.in_channels, 256):
            raise ValueError(f"image_mean and image_std must have {vision.in_channels} numbers")
    except (TypeError, ValueError, ArithmeticError) as error:
        raise BundleError(BundleProblem.SETTING_INVALID, path=path, kind=type(error).__name__, error=error) from error
    return Settings(vision.crop_size, vision.patch_size, most, levels)
