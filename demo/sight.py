"""Training wheels for the vision tower: each image token says what is drawn in its cell.

Answers alone teach sight slowly, since a dozen words carry the whole error. So while training, small heads read the
encoder's features and state, for each cell of the image (one merged token, 32 x 32 pixels), the facts below. The heads
are thrown away afterwards; what stays is a division of labour: the main features say where something is and how it
stands to the rest of the picture, and DeepStack says what it is.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from demo.config import MERGE_SIZE
from demo.scenes import COLOURS, MAX_SHAPES, PLACES, SHAPES, Scene
from demo.signs import Sign

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


_CLASSES = (2, 1 + len(COLOURS), 1 + len(SHAPES), len(_PLACES), *4 * (MAX_SHAPES,))
_FROM_DEEPSTACK = (Fact.COLOUR, Fact.KIND)  # its first level; everything else is read from the main features


def cell_truth(view: Scene | Sign, height: int, width: int) -> npt.NDArray[np.int64]:
    """What is in each cell, [rows * columns, facts], for a patch grid of height x width.

    A cell that a shape only touches with its rim is left UNSURE of colour and kind; so are all cells of a crowd of the
    facts about the whole picture. On a sign there are no shapes.
    """
    rows, columns = height // MERGE_SIZE, width // MERGE_SIZE
    cell_height, cell_width = view.height / rows, view.width / columns
    tops, lefts = np.arange(rows)[:, None] * cell_height, np.arange(columns)[None, :] * cell_width
    truth = np.full((rows, columns, len(Fact)), UNSURE, np.int64)
    truth[..., [Fact.CENTRE, Fact.COLOUR, Fact.KIND]] = 0
    if isinstance(view, Sign):
        return truth.reshape(-1, len(Fact))
    nearest = np.full((rows, columns), np.inf)
    for shape in view.shapes:
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
    kinds = [shape.kind for shape in view.shapes]
    colours = [shape.colour for shape in view.shapes]
    for order, shape in enumerate(view.shapes):
        cell = truth[int(shape.y / cell_height), int(shape.x / cell_width)]
        cell[Fact.CENTRE] = 1
        if len(kinds) > MAX_SHAPES:
            continue
        cell[Fact.PLACE] = _PLACES.index(view.place(shape))
        cell[Fact.ORDER] = order
        cell[Fact.SHAPES] = len(kinds) - 1
        cell[Fact.SAME_KIND] = kinds.count(shape.kind) - 1
        cell[Fact.SAME_COLOUR] = colours.count(shape.colour) - 1
    return truth.reshape(-1, len(Fact))


class SightHeads(nn.Module):
    """The heads, on features of the text model's width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList([nn.Linear(width, classes) for classes in _CLASSES])

    def forward(self, main: torch.Tensor, deepstack: list[torch.Tensor], truth: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy; features are [tokens, width] and the truth is [tokens, facts]."""
        losses = [torch.zeros(())]  # a batch may show nothing at all
        for fact, head in zip(Fact, self.heads, strict=True):
            known = truth[:, fact] != UNSURE
            if known.any():  # of an empty set the mean would be NaN
                said = head((deepstack[0] if fact in _FROM_DEEPSTACK else main)[known])
                losses.append(functional.cross_entropy(said.float(), truth[known, fact]))
        return torch.stack(losses).sum()
