"""What `bundle.json` says of a model of the family."""

from collections.abc import Mapping
from typing import Any

from .checkpoint import Checkpoint
from .genai import edge


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """The entries `text` and `tokens`, and `vision` where there is an encoder."""
    text, generation = checkpoint.text, checkpoint.generation_config
    described = {
        "text": {
            "hidden_size": text.hidden_size,
            "num_hidden_layers": text.num_hidden_layers,
            "num_attention_heads": text.num_attention_heads,
            "num_key_value_heads": text.num_key_value_heads,
            "head_dim": checkpoint.head_dim,
            "vocab_size": text.vocab_size,
            "max_position_embeddings": text.max_position_embeddings,
            "tie_word_embeddings": checkpoint.config.tie_word_embeddings,
        },
        "tokens": {"eos": _as_list(generation["eos_token_id"]), "pad": generation.get("pad_token_id")},
    }
    if checkpoint.variant.encoder is None:
        return described
    config, vision = checkpoint.config, checkpoint.vision
    described["text"]["mrope_section"] = checkpoint.mrope_section
    described["tokens"] |= {
        "image": config.image_token_id,
        "video": config.video_token_id,
        "vision_start": config.vision_start_token_id,
        "vision_end": config.vision_end_token_id,
    }
    described["vision"] = {
        "depth": vision.depth,
        "hidden_size": vision.hidden_size,
        "patch_size": edge(vision.patch_size),
        "temporal_patch_size": edge(vision.temporal_patch_size),
        "spatial_merge_size": vision.spatial_merge_size,
        "in_channels": vision.in_channels,
        **checkpoint.variant.encoder.describe(vision),
    }
    return described


def encoder_fields(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """The fields of the encoder's config that determine its features."""
    encoder = checkpoint.variant.encoder
    return {} if encoder is None else {name: getattr(checkpoint.vision, name) for name in encoder.fields}


def _as_list(ids: int | list[int]) -> list[int]:
    return [ids] if isinstance(ids, int) else list(ids)
