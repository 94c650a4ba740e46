"""Training batches, a pure function of (seed, step): a resumed run draws exactly what an unbroken one would.

All images of a batch have the same number of patches (not the same shape), so the encoder's attention is one dense
batch. Text is padded on the right, where nothing attends to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer
from torch.utils.data import DataLoader, Dataset
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from demo.config import IMAGE_PREPROCESSOR
from demo.prompts import Sequence, pick_system, render
from demo.scenes import MAX_SHAPES, compressed, draw_crowd
from demo.seeds import Split, stream
from demo.sight import Fact, cell_truth
from demo.sizes import random_token_count, training_sizes
from demo.skills import SKILLS, Example, Turn, scene_chat

IGNORED = -100


@dataclass(frozen=True)
class Batch:
    """B chats padded to L tokens, with N images of P patches each."""

    input_ids: torch.Tensor  # [B, L]
    labels: torch.Tensor  # [B, L]: the token that follows each position, or IGNORED
    position_ids: torch.Tensor  # [3, B, L]
    image_mask: torch.Tensor  # [B, L] bool
    pixel_values: torch.Tensor  # [N * P, 1536]
    grid: torch.Tensor  # [N, 3]
    cells: torch.Tensor  # [N * P / 4, facts]: see demo.sight


@dataclass(frozen=True)
class Chat:
    """One chat, its patches, its grids, and what is in their cells."""

    sequence: Sequence
    pixels: torch.Tensor
    grid: torch.Tensor
    cells: torch.Tensor


@dataclass(frozen=True)
class Course:
    """What is learnt when: to see single shapes first, then to talk about more of them, then in larger images too."""

    batch_size: int = 32
    look_until: int = 1000  # steps that train the vision tower alone
    turns: int = 4  # about each scene
    small_until: int = 2400  # steps with images of at most 18 tokens
    shapes_every: int = 60  # steps until one shape more is drawn
    crowds: float = 0.5  # share of what is only looked at
    photos: float = 0.15  # share of the images that have been through JPEG

    def most_shapes(self, step: int) -> int:
        """How many shapes a scene may hold by then: looking is learnt on full scenes, talking on few shapes first."""
        if step < self.look_until:
            return MAX_SHAPES
        return min(MAX_SHAPES, 1 + (step - self.look_until) // self.shapes_every)


def image_processor() -> Qwen2VLImageProcessorPil:
    """The preprocessing of a published Qwen3-VL, on Pillow."""
    settings = {name: value for name, value in IMAGE_PREPROCESSOR.items() if not name.endswith(("_class", "_type"))}
    return Qwen2VLImageProcessorPil(**settings)


class Batches(Dataset[Batch]):
    """Maps a step to its batch."""

    def __init__(self, tokenizer: Tokenizer, seed: int, course: Course) -> None:
        self._tokenizer = tokenizer
        self._seed = seed
        self._course = course
        self._processor = image_processor()

    def __getitem__(self, step: int) -> Batch:
        rng = stream(Split.TRAIN, self._seed, "batch", step)
        sizes = training_sizes(random_token_count(rng, 18 if step < self._course.small_until else None))
        return collate([self._chat(step, row, sizes) for row in range(self._course.batch_size)])

    def _chat(self, step: int, row: int, sizes: list[tuple[int, int]]) -> Chat:
        rng = stream(Split.TRAIN, self._seed, step, row)
        course = self._course
        look_only = step < course.look_until
        if look_only and rng.random() < course.crowds:
            crowd = draw_crowd(rng, *rng.choice(sizes))
            example = Example((crowd.image,), (Turn("look", "", ""),), (crowd,))
        elif row % 16 == 15 and step % 2 == 0 and not look_only:
            example = SKILLS["chat"].example(rng, Split.TRAIN, sizes)
        else:
            count = min(course.most_shapes(step), rng.choice((1, 2, 3, 3, 4, 4)))
            example = scene_chat(rng, Split.TRAIN, sizes, course.turns, count)
        pixels, grid = torch.zeros(0, 1536), torch.zeros(0, 3, dtype=torch.long)
        if example.images:
            images = [
                compressed(image, rng.randint(55, 95)) if rng.random() < course.photos else image
                for image in example.images
            ]
            features = self._processor(images, return_tensors="pt")
            pixels, grid = features["pixel_values"], features["image_grid_thw"]
        system, image_last = pick_system(rng), rng.random() < 0.1
        sequence = render(example, grid.numpy(), self._tokenizer, system=system, image_last=image_last)
        truth = [
            cell_truth(scene, height, width)
            for scene, (_, height, width) in zip(example.scenes, grid.tolist(), strict=True)
        ]
        return Chat(
            sequence, pixels, grid, torch.from_numpy(np.concatenate([np.zeros((0, len(Fact)), np.int64), *truth]))
        )


def collate(chats: list[Chat]) -> Batch:
    """Pad chats into one batch."""
    length = max(len(chat.sequence.ids) for chat in chats)
    rows = len(chats)
    ids = np.zeros((rows, length), np.int64)
    labels = np.full((rows, length), IGNORED, np.int64)
    positions = np.zeros((3, rows, length), np.int64)
    image = np.zeros((rows, length), np.bool_)
    for row, sequence in enumerate(chat.sequence for chat in chats):
        used = len(sequence.ids)
        ids[row, :used] = sequence.ids
        labels[row, : used - 1] = np.where(sequence.learn[1:], sequence.ids[1:], IGNORED)
        positions[:, row, :used] = sequence.positions
        image[row, :used] = sequence.image
    return Batch(
        torch.from_numpy(ids),
        torch.from_numpy(labels),
        torch.from_numpy(positions),
        torch.from_numpy(image),
        torch.cat([chat.pixels for chat in chats]),
        torch.cat([chat.grid for chat in chats]),
        torch.cat([chat.cells for chat in chats]),
    )


def batches(tokenizer: Tokenizer, seed: int, course: Course, *, first: int, last: int, workers: int) -> Iterator[Batch]:
    """Batches of the steps from `first` up to but not including `last`, drawn ahead by worker processes."""
    dataset = Batches(tokenizer, seed, course)
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=range(first, last),
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        multiprocessing_context="spawn" if workers else None,
    )
    yield from loader
