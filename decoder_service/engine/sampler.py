"""One token from one row of logits.

Our own instead of onnxruntime-genai's: with `top_k=0` the nucleus of genai 0.18 is not the one that `top_p` describes
(of 600 draws 559 lay outside it), and every engine is to draw alike.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from decoder_service.engine.interface import SamplingParams

_HEAD = 1024


class Sampler:
    """Draws the tokens of one answer, in the order of transformers: temperature, top_k, top_p.

    Args:
        params: How.
    """

    def __init__(self, params: SamplingParams) -> None:
        self._params = params
        self._random = np.random.Generator(np.random.PCG64(params.seed))

    def draw(self, logits: NDArray[np.float32]) -> int:
        """Choose a token.

        Args:
            logits: One for each token of the vocabulary, float32 [vocab].

        Raises:
            FloatingPointError: A logit is not a number.
        """
        params = self._params
        likeliest = int(logits.argmax())  # of equals the first; NaN counts as greatest
        if not np.isfinite(logits[likeliest]):
            raise FloatingPointError("the model's logits are not finite")
        if params.temperature == 0 or params.top_k == 1:
            return likeliest
        kept = np.arange(logits.size)
        if 0 < params.top_k < logits.size:
            kept = _greatest(logits, params.top_k)
        # float64, and relative to the greatest: exp neither overflows nor makes all of them 0.
        weights = np.exp((logits[kept].astype(np.float64) - float(logits[likeliest])) / params.temperature)
        weights /= weights.sum()
        if params.top_p < 1:
            kept, weights = self._nucleus(kept, weights)
        else:
            order = np.argsort(kept)  # the draw must not depend on how a partition left them
            kept, weights = kept[order], weights[order]
        cumulative = np.cumsum(weights)
        place = int(np.searchsorted(cumulative, self._random.random() * cumulative[-1], side="right"))
        return int(kept[min(place, kept.size - 1)])

    def _nucleus(
        self, kept: NDArray[np.intp], weights: NDArray[np.float64]
    ) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        """Likeliest first, ties by id: those that have less than `top_p` ahead of them."""
        if kept.size > _HEAD:  # sorting a whole vocabulary takes 20 ms, and the nucleus is mostly small
            head = _greatest(weights, _HEAD)
            if weights[head].sum() >= self._params.top_p:
                kept, weights = kept[head], weights[head]
        order = np.lexsort((kept, -weights))
        kept, weights = kept[order], weights[order]
        ahead = np.cumsum(weights) - weights
        size = max(1, int(np.searchsorted(ahead, self._params.top_p, side="left")))
        return kept[:size], weights[:size]


def _greatest(values: NDArray[np.floating], count: int) -> NDArray[np.intp]:
    """Places of the greatest values, in no order."""
    return np.argpartition(values, -count)[-count:]
