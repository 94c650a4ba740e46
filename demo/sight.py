"""Training wheels for the vision tower: each image token says what is drawn in its cell.

Answers alone teach sight slowly, since a dozen words carry the whole error. So while training, small heads read the
encoder's features and state, for each cell of the image (one merged token, 32 x 32 pixels), the facts below. The heads
are thrown away afterwards; what stays is a division of labour: the main features say where something is and how it
stands to the rest of the picture, the first DeepStack level says what shape it is, and the second which letters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from demo.config import MERGE_SIZE
from demo.scenes import COLOURS, MAX_SHAPES, PLACES, SHAPES, Scene
from demo.signs import LETTERS, MAX_LETTERS, Letter, Sign

UNSURE = -100
_PLACES = [place for row in PLACES for place in row]
MAIN, FIRST, SECOND = range(3)  # which feature map a head reads


@dataclass(frozen=True)
class Fact:
    """One thing a head states about a cell: of `classes`, class 0 of some means that there is nothing."""

    name: str
    classes: int
    level: int
    nothing_weight: float = 1.0  # of class 0 in the loss, where it is nearly always right


_FACTS = (
    Fact("centre", 2, MAIN),  # whether a shape's centre is in the cell
    Fact("colour", 1 + len(COLOURS), FIRST),
    Fact("kind", 1 + len(SHAPES), FIRST),
    # These are told only of cells that hold a centre.
    Fact("place", len(_PLACES), MAIN),
    Fact("order", MAX_SHAPES, MAIN),  # in reading order
    Fact("shapes", MAX_SHAPES, MAIN),  # how many there are in the picture, less one
    Fact("same kind", MAX_SHAPES, MAIN),
    Fact("same colour", MAX_SHAPES, MAIN),
    # Letters whose middle is in the cell, from left to right, and where in the word the first of them stands.
    Fact("letter 1", 1 + len(LETTERS), SECOND, 0.15),
    Fact("letter 2", 1 + len(LETTERS), SECOND, 0.15),
    Fact("letter 3", 1 + len(LETTERS), SECOND, 0.05),
    # Which letter covers each of the cell's four patches, row by row.
    Fact("upper left", 1 + len(LETTERS), SECOND, 0.15),
    Fact("upper right", 1 + len(LETTERS), SECOND, 0.15),
    Fact("lower left", 1 + len(LETTERS), SECOND, 0.15),
    Fact("lower right", 1 + len(LETTERS), SECOND, 0.15),
    Fact("index", 1 + MAX_LETTERS, MAIN, 0.15),
    Fact("length", MAX_LETTERS, MAIN),  # of the word, less one; told only of cells that hold letters
)
FACTS = {fact.name: index for index, fact in enumerate(_FACTS)}
_LETTER_SLOTS = 3


def cell_truth(view: Scene | Sign, height: int, width: int) -> npt.NDArray[np.int64]:
    """What is in each cell, [rows * columns, facts], for a patch grid of height x width."""
    rows, columns = height // MERGE_SIZE, width // MERGE_SIZE
    truth = np.full((rows, columns, len(_FACTS)), UNSURE, np.int64)
    for name in ("centre", "colour", "kind"):
        truth[..., FACTS[name]] = 0
    cell_height, cell_width = view.height / rows, view.width / columns
    if isinstance(view, Scene):
        _tell_shapes(truth, view, cell_height, cell_width)
    else:
        _tell_letters(truth, view, cell_height, cell_width)
    return truth.reshape(-1, len(_FACTS))


def _tell_shapes(truth: npt.NDArray[np.int64], scene: Scene, cell_height: float, cell_width: float) -> None:
    """Facts about shapes. A cell that a shape only touches with its rim is left unsure of colour and kind."""
    rows, columns, _ = truth.shape
    tops, lefts = np.arange(rows)[:, None] * cell_height, np.arange(columns)[None, :] * cell_width
    nearest = np.full((rows, columns), np.inf)
    for shape in scene.shapes:
        down = shape.y - np.clip(shape.y, tops, tops + cell_height)
        across = shape.x - np.clip(shape.x, lefts, lefts + cell_width)
        # From the shape's centre to the cell's nearest point, in radii.
        distance = np.hypot(down, across) / shape.radius
        closer = distance < np.minimum(nearest, 1.2)
        inside = closer & (distance < 0.55)
        truth[closer, FACTS["colour"]], truth[closer, FACTS["kind"]] = UNSURE, UNSURE
        truth[inside, FACTS["colour"]] = 1 + COLOURS.index(shape.colour)
        truth[inside, FACTS["kind"]] = 1 + SHAPES.index(shape.kind)
        nearest = np.minimum(nearest, distance)
    for shape in scene.shapes:
        truth[int(shape.y / cell_height), int(shape.x / cell_width), FACTS["centre"]] = 1
    if len(scene.shapes) > MAX_SHAPES:
        return  # in a crowd nothing is said of places and numbers
    kinds = [shape.kind for shape in scene.shapes]
    colours = [shape.colour for shape in scene.shapes]
    for order, shape in enumerate(scene.shapes):
        cell = truth[int(shape.y / cell_height), int(shape.x / cell_width)]
        cell[FACTS["place"]] = _PLACES.index(scene.place(shape))
        cell[FACTS["order"]] = order
        cell[FACTS["shapes"]] = len(kinds) - 1
        cell[FACTS["same kind"]] = kinds.count(shape.kind) - 1
        cell[FACTS["same colour"]] = colours.count(shape.colour) - 1


def _tell_letters(truth: npt.NDArray[np.int64], sign: Sign, cell_height: float, cell_width: float) -> None:
    """Facts about letters, on a picture without shapes. A cell with letters of two words is left unsure of them."""
    slots = [FACTS[f"letter {number}"] for number in range(1, 1 + _LETTER_SLOTS)]
    patches = [FACTS[name] for name in ("upper left", "upper right", "lower left", "lower right")]
    stated = [*slots, FACTS["index"]]
    truth[..., [*stated, *patches]] = 0
    rows, columns, _ = truth.shape
    owners: dict[tuple[int, int], int] = {}
    for number, word in enumerate(sign.words):
        for index, letter in enumerate(word):
            row = min(rows - 1, max(0, int(letter.y / cell_height)))
            column = min(columns - 1, max(0, int(letter.x / cell_width)))
            label = 1 + LETTERS.index(letter.letter)
            for y, x in _covered(letter, cell_height / MERGE_SIZE, cell_width / MERGE_SIZE):
                if y < MERGE_SIZE * rows and x < MERGE_SIZE * columns:
                    patch = patches[MERGE_SIZE * (y % MERGE_SIZE) + x % MERGE_SIZE]
                    truth[y // MERGE_SIZE, x // MERGE_SIZE, patch] = label
            cell = truth[row, column]
            if owners.setdefault((row, column), number) != number:
                cell[[*stated, FACTS["length"]]] = UNSURE
                continue
            if cell[FACTS["index"]] == 0:
                cell[FACTS["index"]] = 1 + index
                cell[FACTS["length"]] = len(word) - 1
            free = [slot for slot in slots if cell[slot] == 0]
            if free:
                cell[free[0]] = label


def _covered(letter: Letter, height: float, width: float) -> list[tuple[int, int]]:
    """Row and column of the patches whose middle the letter covers, or of the one that its own middle is in."""
    rows = _within(letter.y, letter.height, height)
    columns = _within(letter.x, letter.width, width)
    return [(row, column) for row in rows for column in columns]


def _within(middle: float, length: float, step: float) -> range:
    first = max(0, math.ceil((middle - length / 2) / step - 0.5))
    last = math.floor((middle + length / 2) / step - 0.5)
    nearest = max(0, int(middle / step))
    return range(first, last + 1) if first <= last else range(nearest, nearest + 1)


class SightHeads(nn.Module):
    """The heads, on features of the text model's width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList([nn.Linear(width, fact.classes) for fact in _FACTS])

    def forward(self, main: torch.Tensor, deepstack: list[torch.Tensor], truth: torch.Tensor) -> torch.Tensor:
        """The facts' mean cross-entropies, summed; features are [tokens, width] and the truth is [tokens, facts]."""
        levels = (main, *deepstack)
        total = torch.zeros(())
        for index, (head, fact) in enumerate(zip(self.heads, _FACTS, strict=True)):
            known = truth[:, index] != UNSURE
            if not known.any():
                continue
            weight = torch.ones(fact.classes)
            weight[0] = fact.nothing_weight
            stated = head(levels[fact.level][known]).float()
            total = total + functional.cross_entropy(stated, truth[known, index], weight)
        return total
