"""Features of media that were asked about lately, so that a second question about a picture costs no encode."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from decoder_service.chat import Layout, Medium
from serving.recent import Recent
from vlm.v1 import tensor_pb2


def media_key(medium: Medium, encoder: str) -> str:
    """Name a feature map by all that it depends on: equal keys mean equal features.

    Args:
        medium: The file, by its digest, what it was taken for, and how it became pixels.
        encoder: Which encoder made the features, as `encoder_name`.
    """
    named = (medium.kind.value, medium.digest, medium.options.hex(), encoder)
    return hashlib.sha256("\n".join(named).encode()).hexdigest()


def encoder_name(fingerprint: str, dtype: tensor_pb2.DataType.ValueType) -> str:
    """Name an encoder by its weights and the type that it computes in.

    Args:
        fingerprint: Of the weights.
        dtype: The type; unspecified where the caller does not tell.
    """
    return f"{fingerprint}:{dtype}"


@dataclass(frozen=True, eq=False)
class Features:
    """The features of one medium, whole.

    Attributes:
        layout: Its place in a prompt.
        prompt_tokens: Tokens that it takes there.
        rows: float32 [layout.token_count, width], not to be written to.
    """

    layout: Layout
    prompt_tokens: int
    rows: NDArray[np.float32]


class FeatureStore(Recent[str, Features]):
    """Keeps the features that were used last. Belongs to one event loop.

    Args:
        max_bytes: Most bytes of all rows together; 0 keeps nothing.
    """

    def __init__(self, max_bytes: int) -> None:
        super().__init__(max_bytes, lambda features: features.rows.nbytes)
