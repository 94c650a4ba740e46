"""The encoder: one forward pass computes the features of several media from their patches."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from transformers import PreTrainedModel

from vision_service.families import encoder, weights
from vision_service.media import Advance, Cancelled, Grid, PreparedMedium

M = TypeVar("M", bound=PreTrainedModel)


class Encoder(encoder.Encoder):
    """The vision model of one of Qwen's families."""

    @property
    def feature_width(self) -> int:
        """Columns of the features: those of each map, side by side."""
        return int(self._tower.maps * self._config.out_hidden_size)

    @property
    def _merge(self) -> int:
        return int(self._config.spatial_merge_size)

    def blank(self, side: int = 1) -> PreparedMedium:
        """An empty image, for warm-up and for measuring the speed.

        Args:
            side: Tokens along each of its sides.
        """
        config: Any = self._config
        patches = self._merge * side
        shape = (patches**2, config.in_channels, config.temporal_patch_size, config.patch_size, config.patch_size)
        levels = np.zeros((config.in_channels, 256), np.float32)
        return PreparedMedium("image", Grid(1, patches, patches), np.zeros(shape, np.uint8), levels)

    def encode(
        self, media: Sequence[PreparedMedium], cancelled: Cancelled = lambda: False, advance: Advance = lambda _: None
    ) -> list[torch.Tensor]:
        """Encode media packed one after another; each frame attends only to itself.

        Args:
            media: At least one.
            cancelled: Called before each layer; True stops the work.
            advance: Called after each layer with the finished share.

        Returns:
            For each medium [grid.patches / merge^2, feature_width] in `out_dtype` on the CPU: its feature maps side by
            side. Each owns its memory.

        Raises:
            WorkCancelledError: `cancelled` returned True.
        """
        with torch.inference_mode():
            # 1. Concatenate the patches of all media: [sum of patches, channels x temporal x patch x patch]
            pixels = torch.from_numpy(np.concatenate([medium.pixel_values() for medium in media]))
            # 2. The forward: maps of [sum of tokens, hidden]
            maps = self._tower(
                pixels.to(self.device, self._tower.dtype), [medium.grid for medium in media], cancelled, advance
            )
            # 3. Split it again, the maps of each medium side by side
            tokens = [medium.grid.patches // self._merge**2 for medium in media]
            pieces = zip(*(torch.split(one, tokens) for one in maps), strict=True)
            return [self._to_out(torch.cat(piece, dim=-1)) for piece in pieces]


def load_model(folder: Path, kind: type[M], *, device: torch.device, dtype: torch.dtype) -> M:
    """Load transformers' model of this kind; see `weights.load_model`."""

    def build(stored: dict[str, Any]) -> M:
        return kind(kind.config_class.from_dict(stored["vision_config"]))  # type: ignore[union-attr]  # every model has one

    model = weights.load_model(folder, build, device=device, dtype=dtype)
    # Not in the weights: computed from the config, and without storage so far.
    rotary: Any = model.rotary_pos_emb
    model.rotary_pos_emb = type(rotary)(model.config).to(device)
    return model


def loader(kind: type[M]) -> functools.partial[M]:
    """`load_model` of one kind."""
    return functools.partial(load_model, kind=kind)
