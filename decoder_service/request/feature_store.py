"""Cache of recently used features, so that a second question about a picture needs no encoding."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from decoder_service.chat import Layout, Medium
from serving.recent import Recent
from vlm.v1 import tensor_pb2


def media_key(medium: Medium, encoder: str, scope: str = "") -> str:
    """The cache key of a medium's features: equal keys mean equal features.

    Args:
        medium: Kind, digest and preprocessing options.
        encoder: Name of the encoder, from `encoder_name`.
        scope: Scope of the request, see `gateway.cache_scope`.
    """
    named = (medium.kind.value, medium.digest, medium.options.hex(), encoder, scope)
    return hashlib.sha256("\n".join(named).encode()).hexdigest()


def encoder_name(fingerprint: str, dtype: tensor_pb2.DataType.ValueType) -> str:
    """The name of an encoder, from its weights and the type in which it computes.

    Args:
        fingerprint: Fingerprint of the weights.
        dtype: The type; unspecified if the caller does not know it.
    """
    return f"{fingerprint}:{dtype}"


@dataclass(frozen=True, eq=False)
class Features:
    """The complete features of one medium.

    Attributes:
        layout: Its layout.
        prompt_tokens: Number of its tokens in the prompt.
        rows: float32 [layout.token_count, width]; must not be changed.
    """

    layout: Layout
    prompt_tokens: int
    rows: NDArray[np.float32]


class FeatureStore(Recent[str, Features]):
    """LRU cache of features. Belongs to one event loop.

    Args:
        max_bytes: Most bytes of all rows together; 0 disables the cache.
    """

    def __init__(self, max_bytes: int) -> None:
        super().__init__(max_bytes, lambda features: features.rows.nbytes)
