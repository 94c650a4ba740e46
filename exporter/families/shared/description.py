"""What `bundle.json` says of a model of the family."""

from collections.abc import Mapping
from typing import Any

from .checkpoint import Checkpoint
from .rotation import longest_short


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
    encoder = checkpoint.variant.encoder
    if encoder is None:
        return described
    if checkpoint.mrope_section is not None:
        described["text"]["mrope_section"] = checkpoint.mrope_section
    if not checkpoint.variant.has_mrope:
        longest = longest_short(checkpoint.text) or checkpoint.text.max_position_embeddings
        described["text"]["original_max_position_embeddings"] = longest
    described["tokens"] |= encoder.tokens(checkpoint.config)
    described["vision"] = dict(encoder.describe(checkpoint.vision))
    return described


def encoder_fields(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """The fields of the encoder's config that determine its features."""
    encoder = checkpoint.variant.encoder
    return {} if encoder is None else {name: getattr(checkpoint.vision, name) for name in encoder.fields}


def _as_list(ids: int | list[int]) -> list[int]:
    return [ids] if isinstance(ids, int) else list(ids)
