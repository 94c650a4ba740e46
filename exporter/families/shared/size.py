"""How much room a bundle takes, before it is written."""

import re
from collections.abc import Sequence
from typing import cast

from exporter.precision import Phase, Precision
from exporter.recipe import Kind, Recipe, block_of

from .adapter import is_of_adapter
from .checkpoint import EMBEDDING, TEXT_PREFIX, VISION_PREFIX, Checkpoint

_PROJECTION = re.compile(rf"{re.escape(TEXT_PREFIX)}layers\.(\d+)\.(?:self_attn|mlp)\.(\w+)_proj\.weight")


def estimate(checkpoint: Checkpoint, graphs: Sequence[Precision | Phase], *, block_size: int, recipe: Recipe) -> int:
    """Bytes that the bundle will take, estimated a little too high."""
    tensors, text = checkpoint.tensors, checkpoint.text
    vision = tensors.total_size(name for name in tensors if name.startswith(VISION_PREFIX))
    table = text.vocab_size * text.hidden_size
    decoder = checkpoint.parameters - vision // 4 + (table if checkpoint.lm_head == EMBEDDING else 0)
    weights = {
        "fp32": 4.0 * decoder,
        "int4": (0.5 + 4 / block_size) * decoder + _added(checkpoint, recipe, block_size),
        "int8": 1.0 * decoder,
    }
    rope = 4 * text.max_position_embeddings * checkpoint.head_dim
    embedding = table * (4 if "fp32" in graphs else 2)
    return int(vision + embedding + sum(weights[graph] + rope for graph in graphs)) + 64 * 2**20


def _added(checkpoint: Checkpoint, recipe: Recipe, block_size: int) -> float:
    """Bytes that the INT4 graph takes for matrices of 8 bits beyond what they took at 4."""
    tensors, layers = checkpoint.tensors, checkpoint.text.num_hidden_layers
    names = [checkpoint.lm_head] if recipe.bits("head", 0, layers) == 8 else []
    for found in filter(None, map(_PROJECTION.fullmatch, tensors)):
        layer, kind = found.groups()
        if recipe.bits(cast("Kind", kind), int(layer), layers) == 8:
            names.append(found[0])
    if recipe.adapter == 8:
        names += filter(is_of_adapter, tensors)
    shapes = [tensors[name].shape for name in names]
    return sum(
        outputs * inputs * (0.5 + 4 / block_of(8, block_size, inputs) - 4 / block_size) for outputs, inputs in shapes
    )
