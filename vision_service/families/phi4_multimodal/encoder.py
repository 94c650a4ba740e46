"""The encoder: features of images, of their crops and of their overview."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.models.phi4_multimodal.configuration_phi4_multimodal import (
    Phi4MultimodalConfig,
    Phi4MultimodalVisionConfig,
)
from transformers.models.phi4_multimodal.modeling_phi4_multimodal import Phi4MultimodalImageEmbedding

from vision_service.families import encoder, weights
from vision_service.families.phi4_multimodal.cost import encoder_cost
from vision_service.families.phi4_multimodal.crops import Crops, token_count
from vision_service.families.phi4_multimodal.preprocess import Picture
from vision_service.families.phi4_multimodal.tower import Tower
from vision_service.media import Advance, Cancelled, PreparedMedium

_UNUSED = r"img_processor\.(head|post_layernorm|encoder\.layers)\."
"""Tensors that a file may have and the features do not need: what comes after the layer that they are taken from."""


def load_model(folder: Path, *, device: torch.device, dtype: torch.dtype) -> Phi4MultimodalImageEmbedding:
    """Load transformers' model without the layers that the features do not need; see `weights.load_model`."""
    return weights.load_model(folder, build, device=device, dtype=dtype, unused=_UNUSED)


def build(stored: dict[str, Any]) -> Phi4MultimodalImageEmbedding:
    """The model of a bundle's `vision/config.json`, without the layers that the features do not need.

    Raises:
        ValueError: The config is not supported.
    """
    vision = Phi4MultimodalVisionConfig.from_dict(stored["vision_config"])
    vision.num_hidden_layers = used_layers(vision)
    model = Phi4MultimodalImageEmbedding(Phi4MultimodalConfig(hidden_size=stored["hidden_size"], vision_config=vision))
    parts: Any = model
    del parts.img_processor.head, parts.img_processor.post_layernorm
    return model


def used_layers(vision: Any) -> int:
    """The number of layers before the hidden states that the features are made from.

    Raises:
        ValueError: The encoder's config is not supported.
    """
    layers, place = vision.num_hidden_layers, vision.feature_layer
    # The hidden states are those before the first layer and those after each.
    used: int = place if place > 0 else layers + 1 + place
    if place == 0 or not 1 <= used <= layers:
        raise ValueError(f"feature_layer is {place}; with {layers} layers it must be one of them")
    for name in ("image_size", "crop_size"):
        size, patch = getattr(vision, name), vision.patch_size
        if type(size) is not int or type(patch) is not int or size < 2 * patch:
            raise ValueError(f"{name} is {size} and patch_size {patch}; a crop must be square and have 2 x 2 patches")
    if (vision.image_size // vision.patch_size) % 2 == 0 and (vision.crop_size // vision.patch_size) % 2:
        raise ValueError(f"crops of {vision.crop_size} pixels have an odd number of patches along an edge")
    return used


class Encoder(encoder.Encoder):
    """Phi-4-multimodal's vision model, with the projection to the width of the language model."""

    load_model = staticmethod(load_model)
    make_tower = Tower
    cost_of = staticmethod(encoder_cost)

    @property
    def feature_width(self) -> int:
        """Columns of the features: the language model's hidden size."""
        return int(self._config.hidden_size)

    def blank(self, side: int = 1) -> PreparedMedium:
        """An empty image, for warm-up and for measuring the speed.

        Args:
            side: Tokens along each side of its crops.
        """
        vision = self._config.vision_config
        crops = Crops.of_tokens(vision.crop_size // vision.patch_size, side)
        patch = (vision.num_channels, 1, vision.patch_size, vision.patch_size)
        return Picture(
            "image",
            crops.grid,
            np.zeros((crops.patches, *patch), np.uint8),
            np.zeros((vision.num_channels, 256), np.float32),
            crops=crops,
            overview=np.zeros((crops.side**2, vision.num_channels * vision.patch_size**2), np.float32),
        )

    def encode(
        self, media: Sequence[PreparedMedium], cancelled: Cancelled = lambda: False, advance: Advance = lambda _: None
    ) -> list[torch.Tensor]:
        """Encode images packed one after another; each crop attends only to itself.

        Args:
            media: At least one, of the class `Picture`.
            cancelled: Called before each layer; True stops the work.
            advance: Called after each layer with the finished share.

        Returns:
            For each image [tokens, feature_width] in `out_dtype` on the CPU. Each owns its memory.

        Raises:
            WorkCancelledError: `cancelled` returned True.
        """
        pictures = [medium for medium in media if isinstance(medium, Picture)]
        if len(pictures) != len(media):
            raise TypeError("a medium was prepared for another family")
        with torch.inference_mode():
            pixels = torch.from_numpy(np.concatenate([picture.pixel_values() for picture in pictures]))
            crops = [picture.crops for picture in pictures]
            rows = self._tower(pixels.to(self.device, self._tower.dtype), crops, cancelled, advance)
            tokens = [token_count(one.grid, one.side) for one in crops]
            return [self._to_out(piece.clone()) for piece in torch.split(rows, tokens)]
