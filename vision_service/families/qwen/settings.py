"""The settings of a checkpoint's two preprocessor files, and whether they are supported."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.bundle_error import BundleError, BundleProblem
from serving.families import VisionInfo
from vision_service.families.levels import fused_levels, separate_levels
from vision_service.media import Kind, Range

# The supported settings; a checkpoint with other ones is refused.
_ALWAYS: dict[str, Any] = {
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "do_convert_rgb": True,
    "resample": 3,
}

# A bound's names: beside `size`, as the first files have them, and in it, in the first form and in today's.
_LEAST, _GREATEST = ("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge")


@dataclass(frozen=True)
class Settings:
    """One of the two preprocessor files, with the defaults that transformers gives it.

    Attributes:
        pixels: Least and greatest number of pixels after resizing; of a video, those of a frame or of all its frames,
            as the family has it.
        levels: What each byte of a colour becomes.
        fps: Of a video: frames that are drawn in a second.
        frames: Of a video: least and greatest number of them.
        video_tokens: Of a video: `max_video_tokens`, where the file turns that limit on.
    """

    pixels: Range
    levels: NDArray[np.float32]
    fps: float
    frames: Range
    video_tokens: int | None


def read_settings(kind: Kind, path: Path, vision: VisionInfo, defaults: Mapping[Kind, Any]) -> Settings:
    """Read one preprocessor file of a bundle; the arguments are those of `settings_of`.

    Raises:
        BundleError: It is missing or damaged, or has unsupported settings.
    """
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise BundleError(BundleProblem.FILE_DAMAGED, path=path, error=error) from error
    return settings_of(kind, config, path, vision, defaults)


def settings_of(
    kind: Kind, config: Mapping[str, Any], path: Path, vision: VisionInfo, defaults: Mapping[Kind, Any]
) -> Settings:
    """What a preprocessor file says; what it leaves out is as the processor's class has it.

    Args:
        kind: What is preprocessed.
        config: The file's content.
        path: Where it lies, for the message.
        vision: Whose patches are to be made.
        defaults: transformers' processor of each kind, or what has its attributes.

    Raises:
        BundleError: It has unsupported settings.
    """

    def setting(name: str) -> Any:
        value = config.get(name)
        return getattr(defaults[kind], name, None) if value is None else value

    expected = {**_ALWAYS, "patch_size": vision.patch_size, "temporal_patch_size": vision.temporal_patch_size}
    for name, value in {**expected, "merge_size": vision.spatial_merge_size}.items():
        if setting(name) != value:
            raise BundleError(
                BundleProblem.SETTING_UNSUPPORTED, path=path, name=name, found=setting(name), supported=value
            )
    size = setting("size")
    try:
        pixels = Range(*(_bound(config, size, names) for names in (_LEAST, _GREATEST)))
        levels = separate_levels if kind == "image" else fused_levels
        settings = Settings(
            pixels=pixels,
            levels=levels(setting("image_mean"), setting("image_std"), setting("rescale_factor")),
            fps=float(setting("fps") or 0),
            frames=Range(int(setting("min_frames") or 0), int(setting("max_frames") or 0)),
            video_tokens=int(setting("max_video_tokens")) if setting("cap_pixels_per_frame") else None,
        )
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(BundleProblem.SETTING_INVALID, path=path, kind=type(error).__name__, error=error) from error
    if not 0 < pixels.low <= pixels.high:
        raise BundleError(BundleProblem.SIZE_UNSUPPORTED, path=path, size=size)
    return settings


def _bound(config: Mapping[str, Any], size: Any, names: tuple[str, str]) -> int:
    """A bound of the pixels; 0 where there is none."""
    inner = size if isinstance(size, dict) else {}
    return int(config.get(names[0]) or inner.get(names[1]) or inner.get(names[0]) or 0)
