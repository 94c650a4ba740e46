"""Training wheels for the vision tower: each image token says what is drawn in its cell.

Answers alone teach sight slowly, since a dozen words carry the whole error. So while training, small heads read the
encoder's features and name, for each cell of the image (one merged token, 32 x 32 pixels): whether a shape's centre is
in it and in which place of the image that is (from the main features), and its colour and kind (from the first
DeepStack level). The heads are thrown away afterwards; what stays is a division of labour: the main features say where
something is, and DeepStack says what it is.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from demo.config import MERGE_SIZE
from demo.scenes import COLOURS, PLACES, SHAPES, Scene

UNSURE = -100
CENTRE, COLOUR, KIND, PLACE = range(4)
# Of the first three, class 0 means that there is nothing; places are told only of cells that hold a centre.
_CLASSES = (2, 1 + len(COLOURS), 1 + len(SHAPES), 9)
_PLACES = [place for row in PLACES for place in row]


def cell_truth(scene: Scene, height: int, width: int) -> npt.NDArray[np.int64]:
    """What is in each cell, [rows * columns, 4] as (CENTRE, COLOUR, KIND, PLACE), for a patch grid of height x width.

    A cell that a shape only touches with its rim is left UNSURE.
    """
    rows, columns = height // MERGE_SIZE, width // MERGE_SIZE
    cell_height, cell_width = scene.height / rows, scene.width / columns
    tops, lefts = np.arange(rows)[:, None] * cell_height, np.arange(columns)[None, :] * cell_width
    truth = np.zeros((rows, columns, len(_CLASSES)), np.int64)
    truth[..., PLACE] = UNSURE
    nearest = np.full((rows, columns), np.inf)
    for shape in scene.shapes:
        down = shape.y - np.clip(shape.y, tops, tops + cell_height)
        across = shape.x - np.clip(shape.x, lefts, lefts + cell_width)
        # From the shape's centre to the cell's nearest point, in radii.
        distance = np.hypot(down, across) / shape.radius
        closer = distance < np.minimum(nearest, 1.2)
        inside = closer & (distance < 0.55)
        truth[closer, COLOUR], truth[closer, KIND] = UNSURE, UNSURE
        truth[inside, COLOUR] = 1 + COLOURS.index(shape.colour)
        truth[inside, KIND] = 1 + SHAPES.index(shape.kind)
        nearest = np.minimum(nearest, distance)
    for shape in scene.shapes:
        cell = truth[int(shape.y / cell_height), int(shape.x / cell_width)]
        cell[CENTRE] = 1
        cell[PLACE] = _PLACES.index(scene.place(shape))
    return truth.reshape(-1, len(_CLASSES))


class SightHeads(nn.Module):
    """The heads, on features of the text model's width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList([nn.Linear(width, classes) for classes in _CLASSES])

    def forward(self, main: torch.Tensor, deepstack: list[torch.Tensor], truth: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy; features are [tokens, width] and the truth is [tokens, 4]."""
        features = (main, deepstack[0], deepstack[0], main)
        losses = [
            functional.cross_entropy(head(feature).float(), truth[:, index], ignore_index=UNSURE)
            for index, (head, feature) in enumerate(zip(self.heads, features, strict=True))
        ]
        return torch.stack(losses).sum()
