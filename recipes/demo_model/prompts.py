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
    turn: Ints  # [L]: which turn that is asked apart, from 1 on, reads this token alone; 0 where all do


NOTHING = Sequence(
    np.zeros(0, np.int64),
    np.zeros(0, np.bool_),
    np.zeros((3, 0), np.int64),
    np.zeros(0, np.bool_),
    np.zeros(0, np.int64),
)


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
    Turns that are asked apart follow what they share, each at the positions that come next after that; with images
    after the question, nothing is shared, and they are one chat.
    """
    apart = example.apart and not media_last
    frames = "".join(f"<{time:.1f} seconds>{IMAGE}" for time in times)
    shown = f"<|vision_start|>{frames}<|vision_end|>" if frames else IMAGE * len(example.views)
    segments: list[tuple[str, bool, int]] = []  # text, whether it is learnt, and whose it is
    if system is not None:
        segments.append((f"<|im_start|>system\n{system}<|im_end|>\n", False, 0))
    if apart:
        segments.append((f"<|im_start|>user\n{shown}", False, 0))
    for index, turn in enumerate(example.turns):
        media = IMAGE if example.one_each else shown if index == 0 else ""
        asked = turn.question + media if media_last else media + turn.question
        before = turn.question if apart else f"<|im_start|>user\n{asked}"
        whose = index + 1 if apart else 0
        segments.append((f"{before}<|im_end|>\n<|im_start|>assistant\n", False, whose))
        segments.append((f"{turn.answer}<|im_end|>", True, whose))
        segments.append(("\n", False, whose))
    ids: list[int] = []
    learn: list[bool] = []
    turns: list[int] = []
    placeholder = tokenizer.token_to_id("<|image_pad|>")
    images = iter(grids)
    for text, learnt, whose in segments:
        for token in tokenizer.encode(text).ids:
            repeat = int(np.prod(next(images))) // MERGE_SIZE**2 if token == placeholder else 1
            ids.extend([token] * repeat)
            learn.extend([learnt] * repeat)
            turns.extend([whose] * repeat)
    sequence, owners = np.asarray(ids, np.int64), np.asarray(turns, np.int64)
    image = sequence == placeholder
    positions = mrope_positions(image, grids)
    if apart:
        begin = positions[:, owners == 1][:, :1]
        for whose in range(1, 1 + len(example.turns)):
            positions[:, owners == whose] = begin + np.arange(np.count_nonzero(owners == whose))
    return Sequence(sequence, np.asarray(learn), positions, image, owners)


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
