"""Prompts with and without images, and what transformers says behind them without a cache.

`generate` of transformers 5.23 with a cache forgets the prompt where a sequence outgrows the short factors of LongRoPE:
it drops the cache, as it says it means to, and then passes the last token alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from decoder_service.engine import Span
from decoder_service.families.family import Prompt
from exporter.divergence import Asked
from serving.bundle import Bundle

TOKENS = 24
CASES = {
    "text": (20, 0),
    "text that outgrows the short factors": (50, 0),
    "long text": (90, 0),
    "image": (20, 12),
    "image that outgrows the short factors": (55, 8),
    "long, with an image": (80, 30),
}
"""Tokens of the prompt, and how many of them are of an image."""


def asked(bundle: Bundle, length: int, rows: int, *, seed: int = 0) -> Asked:
    """Random tokens, from the third on the rows of an image."""
    rng = np.random.default_rng((seed, length, rows))
    ids = rng.integers(0, 250, length).astype(np.int32)
    ids[3 : 3 + rows] = bundle.media_tokens.image
    media = (Span(3, 3 + rows, (), "key"),) if rows else ()
    features = 0.3 * rng.normal(size=(rows, bundle.feature_width)).astype(np.float32)
    positions = np.arange(length + 1, dtype=np.int64)[None]
    return Asked(Prompt(tuple(ids.tolist()), ids, positions, media, None, rows), features)


@torch.no_grad()
def logits_of(model: Any, question: Asked, tokens: list[int]) -> NDArray[np.float32]:
    """Logits before each of `tokens` and after the last, each of a pass over the whole sequence."""
    count = len(question.prompt.token_ids)
    ids = torch.tensor([[*question.prompt.token_ids, *tokens]])
    embedded = model.model.embed_tokens(ids)
    for span in question.prompt.media:
        embedded[0, span.start : span.stop] = torch.from_numpy(question.features)
    lengths = range(count, count + len(tokens) + 1)
    passes = [model(inputs_embeds=embedded[:, :length], logits_to_keep=1).logits[0, -1] for length in lengths]
    return np.asarray(torch.stack(passes).numpy())
