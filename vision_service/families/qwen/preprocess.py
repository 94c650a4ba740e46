"""Preprocesses media for the encoder, as transformers' own processors do."""

from __future__ import annotations

import abc
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize as image_size

from serving.bundle import Bundle
from serving.errors import Reason, invalid, too_large
from vision_service.families.levels import separate_levels
from vision_service.families.qwen.patches import patchify
from vision_service.families.qwen.settings import read_settings
from vision_service.family import PreprocessLimits
from vision_service.images import MAX_ASPECT_RATIO, decode_image
from vision_service.media import PATH, Cancelled, Grid, Kind, Options, PreparedMedium, Range
from vision_service.video import read_clip


@dataclass(frozen=True)
class Sampling:
    """The sampling density of a video.

    Attributes:
        fps: Frames sampled per second.
        frames: Fewest and most frames; fewer only if the video has no more.
    """

    fps: float
    frames: Range


class Preprocessor(abc.ABC):
    """Converts files to patches. It has no state, so several threads may call it at once.

    Args:
        bundle: The bundle with the preprocessor settings and patch sizes.
        limits: Limits of media.

    Raises:
        BundleError: A settings file is missing or has unsupported settings.
    """

    DEFAULTS: ClassVar[Mapping[Kind, Any]]
    """What a settings file leaves out, as attributes: transformers' processors, where they can be imported."""

    def __init__(self, bundle: Bundle, limits: PreprocessLimits) -> None:
        self._limits = limits
        vision = bundle.vision
        self._patch = vision.patch_size
        self._temporal = vision.temporal_patch_size
        self._merge = vision.spatial_merge_size
        folder = bundle.vision_dir
        self._image = read_settings("image", folder / "preprocessor_config.json", vision, self.DEFAULTS)
        self._video = read_settings("video", folder / "video_preprocessor_config.json", vision, self.DEFAULTS)

    @abc.abstractmethod
    def _volumes(self) -> Range:
        """Least and greatest volume of a resized video, as published."""

    @abc.abstractmethod
    def _sample(self, total: int, fps: float, sampling: Sampling) -> list[int]:
        """The indices of the sampled frames, ascending, at least one.

        Args:
            total: Frames of the video, at least 1.
            fps: Its frames per second.
            sampling: The density.
        """

    @abc.abstractmethod
    def _frame_size(self, count: int, height: int, width: int, options: Options) -> tuple[int, int]:
        """Height and width of a video's resized frames.

        Args:
            count: Frames that were sampled.
            height: Their height.
            width: Their width.
            options: Preprocessing options.

        Raises:
            ValueError: One side is too long for the other.
        """

    @abc.abstractmethod
    def _patch_times(self, times: Sequence[float], total: int, fps: float) -> tuple[float, ...]:
        """The time of each temporal patch in seconds, as the family's decoder takes it.

        Args:
            times: The times of the sampled frames.
            total: Frames of the video.
            fps: Its frames per second.
        """

    @property
    def published(self) -> Options:
        """All of the checkpoint's own settings."""
        return Options(
            min_pixels=self._image.pixels.low,
            max_pixels=self._image.pixels.high,
            fps=self._video.fps,
            min_frames=self._video.frames.low,
            max_frames=self._video.frames.high,
            min_video_pixels=self._volumes().low,
            max_video_pixels=self._volumes().high,
        )

    def token_count(self, grid: Grid) -> int:
        """Number of feature rows of a medium: one for each block of merge x merge patches."""
        return grid.patches // self._merge**2

    def pixels(self, kind: Kind, patches: int) -> int:
        """Pixels of a resized medium of `patches` patches; of a video, of all its frames."""
        return patches * self._patch**2 * (self._temporal if kind == "video" else 1)

    def prepare(
        self, kind: Kind, data: bytes, options: Options, cancelled: Cancelled = lambda: False
    ) -> PreparedMedium:
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
        if not data:
            raise invalid(PATH, f"is empty; send the {kind}'s bytes", reason=Reason.MEDIA_EMPTY)
        if kind == "image":
            return self._prepare_image(data, options)
        return self._prepare_video(data, options, cancelled)

    def _prepare_image(self, data: bytes, options: Options) -> PreparedMedium:
        pixels = self._image.pixels.override(options.min_pixels, options.max_pixels)

        def target_size(width: int, height: int) -> tuple[int, int]:
            size: tuple[int, int] = image_size(
                height, width, self._patch * self._merge, min_pixels=pixels.low, max_pixels=pixels.high
            )
            return size

        def check(width: int, height: int) -> None:
            self._check_patches(
                1, *target_size(width, height), "image", self._at_fault("pixels", options.min_pixels, 1)
            )

        picture = decode_image(data, max_pixels=self._limits.image_pixels, check=check)
        height, width = target_size(picture.width, picture.height)
        resized = picture.resize((width, height), Image.Resampling.BICUBIC)
        return self._medium("image", np.asarray(resized)[None], self._image.levels, picture.size)

    def _prepare_video(self, data: bytes, options: Options, cancelled: Cancelled) -> PreparedMedium:
        frames = self._video.frames.override(options.min_frames, options.max_frames)
        sampling = Sampling(options.fps or self._video.fps, frames)
        seen: list[tuple[int, float]] = []

        def sample(total: int, fps: float) -> list[int]:
            seen.append((total, fps))
            return self._sample(total, fps, sampling)

        def target_size(count: int, height: int, width: int) -> tuple[int, int]:
            size = self._checked_size(count, height, width, options)
            at_fault = self._at_fault("video_pixels", options.min_video_pixels, self._temporal)
            self._check_patches(-(-count // self._temporal), *size, "video", at_fault)
            return size

        clip = read_clip(
            data,
            sample=sample,
            limits=self._limits.video,
            target_size=target_size,
            cancelled=cancelled,
        )
        return self._medium(
            "video",
            clip.frames,
            self._video.levels,
            clip.size_given,
            timestamps=self._patch_times(clip.times, *seen[-1]),  # the last ones: a wrong header is read again
            frame_times=clip.times,
        )

    def _checked_size(self, count: int, height: int, width: int, options: Options) -> tuple[int, int]:
        try:
            return self._frame_size(count, height, width, options)
        except ValueError as error:
            raise invalid(
                PATH,
                f"is a video of {width} x {height} pixels; one side may be at most {MAX_ASPECT_RATIO} times the other",
                reason=Reason.VIDEO_ASPECT_RATIO,
            ) from error

    def _at_fault(self, bound: str, least: int | None, depth: int) -> str:
        """The option that makes a medium too large: its least size, if that alone does.

        Args:
            bound: `pixels` or `video_pixels`.
            least: The bound of the request.
            depth: Frames of a patch.
        """
        alone = least is not None and least > self._limits.patches * self._patch**2 * depth
        return f"min_{bound}" if alone else f"max_{bound}"

    def _check_patches(self, t: int, height: int, width: int, kind: Kind, option: str) -> None:
        patches = t * (height // self._patch) * (width // self._patch)
        if patches > self._limits.patches:
            raise too_large(
                PATH,
                f"is {'an' if kind == 'image' else 'a'} {kind} that becomes {patches} patches, over the limit of "
                f"{self._limits.patches} (max_patches); lower {option}",
                reason=Reason.IMAGE_TOO_MANY_PATCHES if kind == "image" else Reason.VIDEO_TOO_MANY_PATCHES,
                limit=self._limits.patches,
            )

    def _medium(
        self,
        kind: Kind,
        frames: NDArray[np.uint8],
        levels: NDArray[np.float32],
        size_given: tuple[int, int],
        *,
        timestamps: tuple[float, ...] = (),
        frame_times: tuple[float, ...] = (),
    ) -> PreparedMedium:
        patches = patchify(frames, patch_size=self._patch, temporal_patch_size=self._temporal, merge_size=self._merge)
        _, height, width, _ = frames.shape
        grid = Grid(-(-len(frames) // self._temporal), height // self._patch, width // self._patch)
        return PreparedMedium(kind, grid, patches, levels, size_given, (width, height), timestamps, frame_times)


def fit_picture(bundle: Bundle, picture: Image.Image) -> PreparedMedium:
    """Prepare an image in the nearest size of whole patches, without limits on pixels.

    Args:
        bundle: The bundle with the patch sizes and the normalization.
        picture: The image in RGB.
    """
    vision = bundle.vision
    edge = vision.patch_size * vision.spatial_merge_size
    width, height = (max(1, round(side / edge)) * edge for side in picture.size)
    frames = np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC))[None]
    patches = patchify(
        frames,
        patch_size=vision.patch_size,
        temporal_patch_size=vision.temporal_patch_size,
        merge_size=vision.spatial_merge_size,
    )
    settings = json.loads((bundle.vision_dir / "preprocessor_config.json").read_bytes())
    mean, std, factor = (
        getattr(Qwen2VLImageProcessorPil, name) if settings.get(name) is None else settings[name]
        for name in ("image_mean", "image_std", "rescale_factor")
    )
    grid = Grid(1, height // vision.patch_size, width // vision.patch_size)
    return PreparedMedium("image", grid, patches, separate_levels(mean, std, factor))
