"""How much room a bundle takes, before it is written."""

from collections.abc import Sequence

from exporter.precision import Phase, Precision

from .checkpoint import EMBEDDING, VISION_PREFIX, Checkpoint


def estimate(checkpoint: Checkpoint, graphs: Sequence[Precision | Phase], block_size: int) -> int:
    """Bytes that the bundle will take, estimated a little too high."""
    tensors, text = checkpoint.tensors, checkpoint.text
    vision = tensors.total_size(name for name in tensors if name.startswith(VISION_PREFIX))
    table = text.vocab_size * text.hidden_size
    decoder = checkpoint.parameters - vision // 4 + (table if checkpoint.lm_head == EMBEDDING else 0)
    weight = {"fp32": 4.0, "int4": 0.5 + 4 / block_size, "int8": 1.0}
    rope = 4 * text.max_position_embeddings * text.head_dim
    embedding = table * (4 if "fp32" in graphs else 2)
    return int(vision + embedding + sum(decoder * weight[graph] + rope for graph in graphs)) + 64 * 2**20
