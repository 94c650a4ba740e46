"""Training wheels for the vision tower: each image token says what is drawn in its cell.

Answers alone teach sight slowly, since a dozen words carry the whole error. So while training, small heads read the
encoder's features and state, for each cell of the image (one merged token, 32 x 32 pixels), the facts below. The heads
are thrown away afterwards; what stays is a division of labour: the main features say where something is and how it
stands to the rest of the picture, and DeepStack says what it is: its first level a shape, its last one a letter.
"""

from __future__ import annotations

import math
from enum import IntEnum

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


class Fact(IntEnum):
    """What is stated about a cell, in the order of the truth's columns."""

    CENTRE = 0  # whether a shape's centre is in it
    COLOUR = 1  # 0 where there is nothing
    KIND = 2  # 0 where there is nothing
    # These are told only of cells that hold a centre.
    PLACE = 3
    ORDER = 4  # in reading order
    SHAPES = 5  # how many shapes are in the picture, less one
    SAME_KIND = 6  # how many of them are of this kind, less one
    SAME_COLOUR = 7
    # Letters whose middle is in the cell, from left to right; 0 where there is none.
    FIRST_LETTER = 8
    SECOND_LETTER = 9
    # Which letter covers the middle of each of the cell's patches, row by row; 0 where there is none.
    UPPER_LEFT = 10
    UPPER_RIGHT = 11
    LOWER_LEFT = 12
    LOWER_RIGHT = 13
    # These are told only of cells that hold a letter's middle.
    INDEX = 14  # of the first letter in its word
    LENGTH = 15  # of that word, less one


_PATCHES = (Fact.UPPER_LEFT, Fact.UPPER_RIGHT, Fact.LOWER_LEFT, Fact.LOWER_RIGHT)
_MIDDLES = (Fact.FIRST_LETTER, Fact.SECOND_LETTER)
_CLASSES = (
    *(2, 1 + len(COLOURS), 1 + len(SHAPES), len(_PLACES), *4 * (MAX_SHAPES,)),
    *6 * (1 + len(LETTERS),),
    *(MAX_LETTERS, MAX_LETTERS),
)
# Everything that is not named here is read from the main features.
_DEEPSTACK_LEVEL = {Fact.COLOUR: 0, Fact.KIND: 0} | dict.fromkeys((*_MIDDLES, *_PATCHES), 2)
# How much it counts to say rightly that there is no letter, which is nearly always so.
_NO_LETTER_WEIGHT = 0.2


def cell_truth(view: Scene | Sign, height: int, width: int) -> npt.NDArray[np.int64]:
    """What is in each cell, [rows * columns, facts], for a patch grid of height x width."""
    rows, columns = height // MERGE_SIZE, width // MERGE_SIZE
    truth = np.full((rows, columns, len(Fact)), UNSURE, np.int64)
    truth[..., [Fact.CENTRE, Fact.COLOUR, Fact.KIND, *_MIDDLES, *_PATCHES]] = 0
    cell_height, cell_width = view.height / rows, view.width / columns
    if isinstance(view, Sign):
        _tell_letters(truth, view, cell_height, cell_width)
    else:
        _tell_shapes(truth, view, cell_height, cell_width)
    return truth.reshape(-1, len(Fact))


def _tell_shapes(truth: npt.NDArray[np.int64], scene: Scene, cell_height: float, cell_width: float) -> None:
    """Facts about shapes.

    A cell that a shape only touches with its rim is left UNSURE of colour and kind; so are all cells of a crowd of the
    facts about the whole picture.
    """
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
        truth[closer, Fact.COLOUR], truth[closer, Fact.KIND] = UNSURE, UNSURE
        truth[inside, Fact.COLOUR] = 1 + COLOURS.index(shape.colour)
        truth[inside, Fact.KIND] = 1 + SHAPES.index(shape.kind)
        nearest = np.minimum(nearest, distance)
    kinds = [shape.kind for shape in scene.shapes]
    colours = [shape.colour for shape in scene.shapes]
    for order, shape in enumerate(scene.shapes):
        cell = truth[int(shape.y / cell_height), int(shape.x / cell_width)]
        cell[Fact.CENTRE] = 1
        if len(kinds) > MAX_SHAPES:
            continue
        cell[Fact.PLACE] = _PLACES.index(scene.place(shape))
        cell[Fact.ORDER] = order
        cell[Fact.SHAPES] = len(kinds) - 1
        cell[Fact.SAME_KIND] = kinds.count(shape.kind) - 1
        cell[Fact.SAME_COLOUR] = colours.count(shape.colour) - 1


def _tell_letters(truth: npt.NDArray[np.int64], sign: Sign, cell_height: float, cell_width: float) -> None:
    """Facts about letters. UNSURE are patches of a letter that the border cuts, and cells with letters of two words."""
    rows, columns, _ = truth.shape
    owners: dict[tuple[int, int], int] = {}
    for number, word in enumerate(sign.words):
        for index, letter in enumerate(word):
            row, column = int(letter.y // cell_height), int(letter.x // cell_width)
            label = 1 + LETTERS.index(letter.letter) if _is_whole(letter, sign) else UNSURE
            for y, x in _covered(letter, cell_height / MERGE_SIZE, cell_width / MERGE_SIZE):
                if 0 <= y < MERGE_SIZE * rows and 0 <= x < MERGE_SIZE * columns:
                    patch = _PATCHES[MERGE_SIZE * (y % MERGE_SIZE) + x % MERGE_SIZE]
                    truth[y // MERGE_SIZE, x // MERGE_SIZE, patch] = label
            if not (0 <= row < rows and 0 <= column < columns):
                continue
            cell = truth[row, column]
            if label == UNSURE or owners.setdefault((row, column), number) != number:
                cell[[*_MIDDLES, Fact.INDEX, Fact.LENGTH]] = UNSURE
            elif cell[Fact.FIRST_LETTER] == 0:
                cell[[Fact.FIRST_LETTER, Fact.INDEX, Fact.LENGTH]] = label, index, len(word) - 1
            elif cell[Fact.SECOND_LETTER] == 0:
                cell[Fact.SECOND_LETTER] = label


def _is_whole(letter: Letter, sign: Sign) -> bool:
    """Whether hardly anything of a letter is cut off by the border."""
    left, top = letter.x - 0.4 * letter.width, letter.y - 0.45 * letter.height
    return (
        left >= 0 and top >= 0 and left + 0.8 * letter.width <= sign.width and top + 0.9 * letter.height <= sign.height
    )


def _covered(letter: Letter, height: float, width: float) -> list[tuple[int, int]]:
    """Row and column of the patches, so high and wide, whose middle the letter covers."""
    rows = _within(letter.y, letter.height, height)
    columns = _within(letter.x, letter.width, width)
    return [(row, column) for row in rows for column in columns]


def _within(middle: float, length: float, step: float) -> range:
    return range(math.ceil((middle - length / 2) / step - 0.5), math.floor((middle + length / 2) / step - 0.5) + 1)


class SightHeads(nn.Module):
    """The heads, on features of the text model's width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList([nn.Linear(width, classes) for classes in _CLASSES])

    def forward(self, main: torch.Tensor, deepstack: list[torch.Tensor], truth: torch.Tensor) -> torch.Tensor:
        """The facts' mean cross-entropies, summed; features are [tokens, width] and the truth is [tokens, facts]."""
        losses = [torch.zeros(())]  # a batch may show nothing at all
        for fact, head, classes in zip(Fact, self.heads, _CLASSES, strict=True):
            known = truth[:, fact] != UNSURE
            if known.any():  # of an empty set the mean would be NaN
                level = _DEEPSTACK_LEVEL.get(fact)
                said = head((main if level is None else deepstack[level])[known])
                weight = torch.ones(classes)
                if fact in _MIDDLES or fact in _PATCHES:
                    weight[0] = _NO_LETTER_WEIGHT
                losses.append(functional.cross_entropy(said.float(), truth[known, fact], weight))
        return torch.stack(losses).sum()
