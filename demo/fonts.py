"""The fonts that words are printed in. Those of the held-out split are other families than those trained on."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from typing import cast

import matplotlib
from PIL import ImageFont

from demo.seeds import Split

_DEFAULT = "Pillow's own"
# By the names of matplotlib's files.
_TRAIN = (
    _DEFAULT,
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSans-Oblique.ttf",
    "DejaVuSansMono.ttf",
    "DejaVuSerif.ttf",
    "DejaVuSerif-Bold.ttf",
    "cmss10.ttf",
)
_HELD_OUT = ("STIXGeneral.ttf", "STIXGeneralBol.ttf", "cmr10.ttf")

Font = ImageFont.FreeTypeFont


def pick_font(rng: random.Random, split: Split, size: int) -> Font:
    """A font of the split, `size` pixels to the em."""
    return _load(rng.choice(_TRAIN if split is Split.TRAIN else _HELD_OUT), size)


@cache
def _load(name: str, size: int) -> Font:
    if name == _DEFAULT:
        # Pillow's wheels are built with FreeType, and then its default font is of this class.
        return cast("Font", ImageFont.load_default(size))
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)
