"""The cost of the encoder, from its config."""

from __future__ import annotations

from typing import Any

import torch

from vision_service.cost import Cost


def encoder_cost(config: Any, dtype: torch.dtype, *, own_attention: bool = False) -> Cost:
    """The cost of one encoder.

    Args:
        config: The encoder's config, in the form of transformers.
        dtype: Type in which its linear layers compute.
        own_attention: Whether attention is computed by our operators.
    """
    width, block = config.hidden_size, config.spatial_merge_size**2
    patch = config.in_channels * config.temporal_patch_size * config.patch_size**2
    layer = 4 * width * width + 3 * width * config.intermediate_size
    merger = (block * width + config.out_hidden_size) * width
    linear = patch * width + config.depth * layer + merger
    whole = len({index for index in config.fullatt_block_indexes if 0 <= index < config.depth})
    tokens = config.window_size // config.spatial_merge_size // config.patch_size
    windowed = (config.depth - whole) * width * block * tokens**2
    return Cost(linear, width * whole, dtype, own_attention=own_attention, windowed=windowed)
