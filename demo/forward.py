"""The training forward pass: the stock model, with shortcuts that change no value but twice the speed.

The stock vision attention loops over images; batches hold images of one patch count, so here it is one dense call.
Attention is spelt out as matrix products: for some hundred positions in bfloat16 on a CPU, the backward pass of
PyTorch's fused kernel takes far longer. The patch embedding, a convolution that meets every pixel once, is a matrix
product. Logits are computed only where there is something to learn.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional
from transformers import Qwen3VLForConditionalGeneration
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from demo.data import IGNORED, Batch, Part
from demo.sight import SightHeads

# The vision tower hands all images over in one call only to implementations whose name says "flash".
_VISION = "equal_lengths_flash"
_TEXT = "plain_causal"


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float, causal: bool) -> torch.Tensor:
    """Attention over [batch, heads, length, head_dim], its softmax in float32."""
    scores = (query * scaling) @ key.transpose(-1, -2)
    if causal:
        length = scores.shape[-1]
        scores = scores + torch.full((length, length), float("-inf"), dtype=scores.dtype).triu(1)
    return torch.softmax(scores.float(), -1).to(value.dtype) @ value


def _vision_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    max_length_q: int,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Attention within images of equal length: [1, heads, images * patches, head_dim]."""
    heads, total, width = query.shape[1:]
    images = total // int(max_length_q)
    query, key, value = (part.view(heads, images, -1, width).transpose(0, 1) for part in (query, key, value))
    output = _attend(query, key, value, scaling, causal=False)  # [images, heads, patches, head_dim]
    return output.transpose(1, 2).reshape(1, total, heads, width), None


def _text_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Causal attention; no mask is needed, since padding comes last and nothing is learnt from it."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    return _attend(query, key, value, scaling, causal=True).transpose(1, 2), None


def for_training(model: Qwen3VLForConditionalGeneration, enabled: bool = True) -> None:
    """Switch the shortcuts on for training, or off again for everything else."""
    ALL_ATTENTION_FUNCTIONS.register(_VISION, _vision_attention)
    ALL_ATTENTION_FUNCTIONS.register(_TEXT, _text_attention)
    model.model.visual.config._attn_implementation = _VISION if enabled else "sdpa"
    model.model.language_model.config._attn_implementation = _TEXT if enabled else "sdpa"
    embedding = model.model.visual.patch_embed
    if enabled:
        embedding.forward = lambda pixels: functional.linear(
            pixels, embedding.proj.weight.flatten(1), embedding.proj.bias
        )
    else:
        vars(embedding).pop("forward", None)


@dataclass(frozen=True)
class Losses:
    """Mean losses of a batch, and the share of the answers' tokens that the model would have said."""

    answers: torch.Tensor
    sight: torch.Tensor
    accuracy: torch.Tensor


def losses(
    model: Qwen3VLForConditionalGeneration, batch: Batch, heads: SightHeads | None = None, *, part: Part = Part.BOTH
) -> Losses:
    """The forward pass on a batch. The loss of what does not learn is zero, and so is that of sight without heads."""
    zero = torch.zeros(())
    with torch.no_grad() if part is Part.TALKING else nullcontext():
        seen = model.model.get_image_features(batch.pixel_values, batch.grid, return_dict=True)
    sight = zero
    if heads is not None and part is not Part.TALKING:
        sight = heads(
            torch.cat(seen.pooler_output), [torch.cat(level) for level in seen.deepstack_features], batch.cells
        )
    if part is Part.LOOKING:
        return Losses(zero, sight, zero)
    hidden = model.model(
        input_ids=batch.input_ids,
        position_ids=batch.position_ids,
        mm_encoder_outputs={"image": seen},
        use_cache=False,
    ).last_hidden_state
    learnt = batch.labels != IGNORED
    logits = model.lm_head(hidden[learnt])
    labels = batch.labels[learnt]
    accuracy = (logits.argmax(-1) == labels).float().mean()
    return Losses(functional.cross_entropy(logits.float(), labels), sight, accuracy)
