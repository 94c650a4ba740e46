"""From an example to token ids: the chat format with placeholders expanded, and which tokens are to be learnt."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from demo.config import MERGE_SIZE
from demo.skills import Example

Ints = npt.NDArray[np.int64]

IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a helpful assistant. You answer questions about pictures.",
    "Answer in one sentence.",
    "You describe pictures.",
)


@dataclass(frozen=True)
class Sequence:
    """One chat as the model reads it, of length L."""

    ids: Ints  # [L]
    learn: npt.NDArray[np.bool_]  # [L]: whether the model is to say this token itself
    positions: Ints  # [3, L]: time, row and column of M-RoPE
    image: npt.NDArray[np.bool_]  # [L]: where image features go


NOTHING = Sequence(np.zeros(0, np.int64), np.zeros(0, np.bool_), np.zeros((3, 0), np.int64), np.zeros(0, np.bool_))


def render(
    example: Example,
    grids: Ints,
    tokenizer: Tokenizer,
    *,
    times: Iterable[float] = (),
    system: str | None = None,
    media_last: bool = False,
) -> Sequence:
    """The chat in Qwen's format.

    `grids` [images, 3] are the patch grids (time, height, width) of the images, or of a clip's temporal patches, whose
    `times` are in seconds. To the text model a temporal patch is an image after a written time: it stands here as one.
    """
    frames = "".join(f"<{time:.1f} seconds>{IMAGE}" for time in times)
    shown = f"<|vision_start|>{frames}<|vision_end|>" if frames else IMAGE * len(example.views)
    segments: list[tuple[str, bool]] = []
    if system is not None:
        segments.append((f"<|im_start|>system\n{system}<|im_end|>\n", False))
    for index, turn in enumerate(example.turns):
        media = IMAGE if example.one_each else shown if index == 0 else ""
        question = turn.question + media if media_last else media + turn.question
        segments.append((f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n", False))
        segments.append((f"{turn.answer}<|im_end|>", True))
        segments.append(("\n", False))
    ids: list[int] = []
    learn: list[bool] = []
    placeholder = tokenizer.token_to_id("<|image_pad|>")
    images = iter(grids)
    for text, learnt in segments:
        for token in tokenizer.encode(text).ids:
            repeat = int(np.prod(next(images))) // MERGE_SIZE**2 if token == placeholder else 1
            ids.extend([token] * repeat)
            learn.extend([learnt] * repeat)
    sequence = np.asarray(ids, np.int64)
    image = sequence == placeholder
    return Sequence(sequence, np.asarray(learn), mrope_positions(image, grids), image)


def mrope_positions(image: npt.NDArray[np.bool_], grids: Ints) -> Ints:
    """Positions [3, L]: text counts on; an image spreads over rows and columns and counts as its longer side."""
    columns: list[Ints] = [np.zeros((3, 0), np.int64)]
    position, index = 0, 0
    left = iter(grids)
    while index < len(image):
        if image[index]:
            _, height, width = (int(side) // MERGE_SIZE for side in next(left))
            rows, cols = np.divmod(np.arange(height * width), width)
            columns.append(np.stack([np.zeros_like(rows), rows, cols]) + position)
            position += max(height, width)
            index += height * width
        else:
            columns.append(np.full((3, 1), position))
            position += 1
            index += 1
    return np.concatenate(columns, axis=1)


def pick_system(rng: random.Random) -> str | None:
    """Most chats have no system prompt."""
    return rng.choice(SYSTEM_PROMPTS) if rng.random() < 0.2 else None
