"""The cost of the encoder, from its config."""

from __future__ import annotations

from typing import Any

import torch

from vision_service.cost import Cost


def encoder_cost(config: Any, dtype: torch.dtype, *, own_attention: bool = False) -> Cost:
    """The cost of one encoder.

    Args:
        config: The model's config, in the form of transformers, with the layers that are used.
        dtype: Type in which its linear layers compute.
        own_attention: Whether attention is computed by our operators.
    """
    vision = config.vision_config
    width, side = vision.hidden_size, vision.crop_size // vision.patch_size
    layer = 4 * width * width + 2 * width * vision.intermediate_size
    projection = (width + config.hidden_size) * config.hidden_size // 4
    linear = vision.num_channels * vision.patch_size**2 * width + vision.num_hidden_layers * layer + projection
    # Attention is within crops: of a patch it costs the same, however many crops there are.
    windowed = vision.num_hidden_layers * width * side**2
    return Cost(linear, 0, dtype, own_attention=own_attention, windowed=windowed, beside=side**2)
