"""Signs: a word or a number printed on a background. Lengths are in pixels of the drawn image."""

from __future__ import annotations

import random
import string
from dataclasses import dataclass

from PIL import Image, ImageDraw

from demo.fonts import Font, pick_font
from demo.scenes import Rgb, as_photo, contrast, draw_background
from demo.seeds import Split

_LONGEST = 8
_MIN_CONTRAST = 110.0


@dataclass(frozen=True)
class Sign:
    """A drawn image and what is printed on it."""

    width: int
    height: int
    text: str
    image: Image.Image


def draw_sign(rng: random.Random, split: Split, width: int, height: int) -> Sign:
    """A sign of that size in a font of the split."""
    image, samples = draw_background(rng, width, height)
    text = _pick_text(rng)
    font = _fitting(rng, split, text, width, height)
    left, top, right, bottom = font.getbbox(text)
    # Printed words stand in the middle more often than anywhere else.
    across, down = (rng.triangular(0.06, 0.94, 0.5) for _ in range(2))
    x, y = across * (width - right + left) - left, down * (height - bottom + top) - top
    ImageDraw.Draw(image).text((x, y), text, font=font, fill=_ink(rng, samples))
    return Sign(width, height, text, as_photo(rng, image))


def _pick_text(rng: random.Random) -> str:
    """A number, or a word that nobody knows."""
    length = rng.randint(2, _LONGEST)
    if rng.random() < 0.25:
        return "".join(rng.choice(string.digits) for _ in range(length))
    word = "".join(rng.choice("BCDFGHJKLMNPQRSTVWXZ" if i % 2 else "AEIOUY") for i in range(length))
    return rng.choice((word, word, word.lower(), word.capitalize()))


def _fitting(rng: random.Random, split: Split, text: str, width: int, height: int) -> Font:
    """A font in which the text fits the image."""
    font = pick_font(rng, split, 40)
    left, top, right, bottom = font.getbbox(text)
    largest = min(0.92 * width / (right - left), 0.7 * height / (bottom - top))
    return font.font_variant(size=max(8, int(40 * largest * rng.uniform(0.4, 1.0))))


def _ink(rng: random.Random, samples: list[Rgb]) -> Rgb:
    """Black or white, whichever stands out more; now and then any colour that does."""
    while rng.random() < 0.3:
        colour = (rng.randint(0, 255), rng.randint(0, 255), rng.randint(0, 255))
        if contrast(colour, samples) >= _MIN_CONTRAST:
            return colour
    return max((0, 0, 0), (255, 255, 255), key=lambda ink: contrast(ink, samples))
