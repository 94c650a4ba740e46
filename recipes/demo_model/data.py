"""Training batches, a pure function of (seed, step): a resumed run draws exactly what an unbroken one would.

All images of a batch have the same number of patches (not the same shape), so the encoder's attention is one dense
batch. Text is padded on the right, where nothing attends to it.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, replace
from enum import Enum
from multiprocessing.util import Finalize

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from torch.utils.data import DataLoader, Dataset

from demo.clips import Clip
from demo.config import MAX_FRAMES, MIN_FRAMES, PATCH_SIZE, TEMPORAL_PATCH_SIZE
from demo.scenes import MAX_SHAPES, Scene
from demo.seeds import Split, stream
from demo.signs import Sign
from demo.sizes import Size, media_tokens, random_token_count, training_sizes
from demo.skills import Example
from recipes.demo_model.lessons import lesson
from recipes.demo_model.memory import keep_memory
from recipes.demo_model.patches import patches
from recipes.demo_model.prompts import NOTHING, Sequence, pick_system, render
from recipes.demo_model.ranks import Ranks
from recipes.demo_model.sight import Fact, cell_truth

IGNORED = -100
_CLIP_TOKENS = 25  # frames of a clip are small


@dataclass(frozen=True)
class Batch:
    """B chats padded to L tokens, with N images of P patches each."""

    input_ids: torch.Tensor  # [B, L]
    labels: torch.Tensor  # [B, L]: the token that follows each position, or IGNORED
    position_ids: torch.Tensor  # [3, B, L]
    image_mask: torch.Tensor  # [B, L] bool
    turns: torch.Tensor  # [B, L]: which turn that is asked apart reads that position alone; 0 where all do
    pixel_values: torch.Tensor  # [N * P, 1536]
    grid: torch.Tensor  # [N, 3]
    cells: torch.Tensor  # [N * P / 4, facts]: see recipes.demo_model.sight


@dataclass(frozen=True)
class Chat:
    """One chat, its patches, its grids, and what is in their cells."""

    sequence: Sequence
    pixels: torch.Tensor
    grid: torch.Tensor
    cells: torch.Tensor


class Part(Enum):
    """What learns in a step."""

    LOOKING = "the vision tower"
    TALKING = "the text model, from what the tower sees"
    BOTH = "both"


@dataclass(frozen=True)
class Course:
    """What is learnt when: to see first, then to talk about small scenes, about small pairs and clips, and about all.

    Until all is asked, the tower stands still and pictures that are talked about are small. On whole rates the tower
    would unlearn letters within fifty steps; and which picture of two, or what changes from one to the next, is
    learnt in fewer and far shorter steps so. Then both learn, and letters are looked at besides. What is asked about is
    mostly small even then; towards the end it has mostly the sizes of people's pictures.
    """

    batch_size: int = 32
    batch_asked: int = 24  # once all is asked
    look_until: int = 6900  # steps that train the vision tower alone
    scenes_until: int = 7200  # steps after which pairs and clips are asked about, too
    still_until: int = 8600  # steps after which the vision tower learns again, too, and everything is asked
    turns: int = 5  # about each scene: about as many tokens as three signs and what is read of them
    most_still: int = 18  # tokens of a picture that is talked about while the tower stands still
    small_share: float = 0.35  # of what is looked at, batches with images of at most 25 tokens, on which steps are fast
    small_asked: float = 0.7  # the same once all is asked
    small_until: int = 10700  # steps after which sizes are mostly those that people's pictures have
    small_last: float = 0.25  # the share of small ones then
    shapes_every: int = 60  # steps until one shape more is drawn
    # How often a chat is of that kind.
    looking: tuple[tuple[str, float], ...] = (
        ("scene", 0.14),
        ("crowd", 0.14),
        ("page", 0.6),
        ("sign", 0.12),
    )
    scenes: tuple[tuple[str, float], ...] = (("scene", 0.7), ("count", 0.27), ("talk", 0.03))
    several: tuple[tuple[str, float], ...] = (
        ("scene", 0.14),
        ("count", 0.08),
        ("sign", 0.16),
        ("pair", 0.28),
        ("clip", 0.3),
        ("talk", 0.04),
    )
    everything: tuple[tuple[str, float], ...] = (
        ("scene", 0.32),
        ("count", 0.03),
        ("sign", 0.39),
        ("pair", 0.12),
        ("clip", 0.11),
        ("talk", 0.03),
    )
    glances: tuple[tuple[str, float], ...] = (("page", 0.5), ("sign", 0.2), ("scene", 0.15), ("crowd", 0.15))

    @property
    def beside(self) -> Course:
        """What is only looked at, a batch in each step, once both learn: letters need more looking."""
        return replace(self, look_until=sys.maxsize, looking=self.glances)

    def part(self, step: int) -> Part:
        """What learns by then."""
        if step < self.look_until:
            return Part.LOOKING
        return Part.TALKING if step < self.still_until else Part.BOTH

    def glances_at(self, step: int) -> bool:
        """Whether a batch is looked at beside that step."""
        return self.part(step) is Part.BOTH

    def rows(self, step: int) -> int:
        """How many chats a batch holds by then."""
        return self.batch_size if step < self.still_until else self.batch_asked

    def kinds(self, step: int) -> tuple[tuple[str, float], ...]:
        """What chats are about by then, and how often."""
        if step < self.look_until:
            return self.looking
        if step < self.scenes_until:
            return self.scenes
        return self.several if step < self.still_until else self.everything

    def progress(self, step: int, steps: int) -> float:
        """The share of looking, and after it of talking, that is over: in each, learning rates fall to zero."""
        begin, end = (0, self.look_until) if step < self.look_until else (self.look_until, steps)
        return (step - begin) / (end - begin)

    def most_tokens(self, step: int, rng: random.Random) -> int | None:
        """How many tokens an image of that batch may take; None where any number is right."""
        if step < self.look_until:
            small = self.small_share
        elif step < self.still_until:
            return self.most_still
        else:
            small = self.small_asked if step < self.small_until else self.small_last
        return _CLIP_TOKENS if rng.random() < small else None

    def most_shapes(self, step: int) -> int:
        """How many shapes a scene may hold by then: looking is learnt on full scenes, talking on few shapes first."""
        if step < self.look_until:
            return MAX_SHAPES
        return min(MAX_SHAPES, 1 + (step - self.look_until) // self.shapes_every)


class Batches(Dataset[Batch]):
    """Maps a step to its batch, or to a rank's share of it: every so many rows of it, in images of the same size."""

    def __init__(self, tokenizer: Tokenizer, seed: int, course: Course, ranks: Ranks | None = None) -> None:
        self._tokenizer = tokenizer
        self._seed = seed
        self._course = course
        self._ranks = ranks or Ranks()

    def __getitem__(self, step: int) -> Batch:
        rng = stream(Split.TRAIN, self._seed, "batch", step)
        sizes = training_sizes(random_token_count(rng, self._course.most_tokens(step, rng)))
        rows = range(self._ranks.rank, self._course.rows(step), self._ranks.world_size)
        return collate([self._chat(step, row, sizes) for row in rows])

    def _chat(self, step: int, row: int, sizes: list[Size]) -> Chat:
        rng, course = stream(Split.TRAIN, self._seed, step, row), self._course
        kinds, weights = zip(*course.kinds(step), strict=True)
        (kind,) = rng.choices(kinds, weights)
        if kind == "clip" and media_tokens(sizes[0]) > _CLIP_TOKENS:
            kind = "scene"
        example = lesson(kind, rng, sizes, course.turns, course.most_shapes(step))
        return self.chat(example, rng, asked=course.part(step) is not Part.LOOKING)

    def chat(self, example: Example, rng: random.Random, *, asked: bool = True) -> Chat:
        """What is learnt from an example; without text if it is only looked at."""
        views: SequenceOf[Scene | Sign] = example.views
        times: tuple[float, ...] = ()
        pixels, grid = torch.zeros(0, 1536), torch.zeros(0, 3, dtype=torch.long)
        if example.clip is not None:
            pixels, grid, views, times = self._watch(rng, example.clip)
        elif views:
            pixels, grid = _shown(example.images)
        sequence = NOTHING
        if asked:
            system, media_last = pick_system(rng), rng.random() < 0.1
            sequence = render(example, grid.numpy(), self._tokenizer, times=times, system=system, media_last=media_last)
        truth = [cell_truth(view, height, width) for view, (_, height, width) in zip(views, grid.tolist(), strict=True)]
        return Chat(
            sequence, pixels, grid, torch.from_numpy(np.concatenate([np.zeros((0, len(Fact)), np.int64), *truth]))
        )

    def _watch(
        self, rng: random.Random, clip: Clip
    ) -> tuple[torch.Tensor, torch.Tensor, tuple[Scene, ...], tuple[float, ...]]:
        """A clip's temporal patches as images are: patches, grids, what they show, and their times in seconds."""
        count = rng.choice((MAX_FRAMES, MAX_FRAMES, MAX_FRAMES, *range(MIN_FRAMES, MAX_FRAMES)))
        moments = [index / (count - 1) for index in range(count)]
        moments += moments[-1:] * (count % TEMPORAL_PATCH_SIZE)
        frames, grids = _shown([clip.frame(moment) for moment in moments])
        # A patch holds a still image twice; here its second half is the frame that follows.
        halves = frames.view(len(moments), -1, 3, TEMPORAL_PATCH_SIZE, PATCH_SIZE**2)
        pixels = torch.stack([halves[0::2, :, :, 0], halves[1::2, :, :, 0]], 3).reshape(-1, 1536)
        seconds = rng.uniform(0.6, 8.0)
        middles = [(first + last) / 2 for first, last in zip(moments[0::2], moments[1::2], strict=True)]
        return (
            pixels,
            grids[::2],
            tuple(clip.scene(moment) for moment in middles),
            tuple(seconds * moment for moment in middles),
        )


def _shown(images: SequenceOf[Image.Image]) -> tuple[torch.Tensor, torch.Tensor]:
    """The patches of all images, and their grids."""
    pixels, grids = zip(*map(patches, images), strict=True)
    return torch.cat(pixels), torch.tensor(grids)


def collate(chats: list[Chat]) -> Batch:
    """Pad chats into one batch."""
    length = max(1, *(len(chat.sequence.ids) for chat in chats))  # what is only looked at has no text
    rows = len(chats)
    ids = np.zeros((rows, length), np.int64)
    labels = np.full((rows, length), IGNORED, np.int64)
    positions = np.zeros((3, rows, length), np.int64)
    image = np.zeros((rows, length), np.bool_)
    turns = np.zeros((rows, length), np.int64)
    for row, sequence in enumerate(chat.sequence for chat in chats):
        used = len(sequence.ids)
        ids[row, :used] = sequence.ids
        labels[row, : max(0, used - 1)] = np.where(sequence.learn[1:], sequence.ids[1:], IGNORED)
        positions[:, row, :used] = sequence.positions
        image[row, :used] = sequence.image
        turns[row, :used] = sequence.turn
    return Batch(
        torch.from_numpy(ids),
        torch.from_numpy(labels),
        torch.from_numpy(positions),
        torch.from_numpy(image),
        torch.from_numpy(turns),
        torch.cat([chat.pixels for chat in chats]),
        torch.cat([chat.grid for chat in chats]),
        torch.cat([chat.cells for chat in chats]),
    )


def _begin_to_draw(_: int) -> None:
    keep_memory()
    # First of all that a process does at its end, it is gone: whatever anybody waits for has been received by then, and
    # at the interpreter's end a thread that still sends the rest would abort.
    Finalize(None, os._exit, (0,), exitpriority=100)


def batches(dataset: Batches, steps: SequenceOf[int], *, workers: int) -> Iterator[Batch]:
    """The batches of these steps, drawn ahead by worker processes."""
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=steps,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        multiprocessing_context="spawn" if workers else None,
        worker_init_fn=_begin_to_draw,
    )
    yield from loader
