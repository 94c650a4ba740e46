"""Signs: a word or a number printed on a background, and pages of many, together with where each letter stands.

Lengths are in pixels of the drawn image.
"""

from __future__ import annotations

import math
import random
import string
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from demo.config import LONGEST_EDGE, PATCH_SIZE, SHORTEST_EDGE
from demo.fonts import Font, pick_font
from demo.scenes import Rgb, as_photo, draw_background
from demo.seeds import Split

MAX_LETTERS = 6
LETTERS = string.digits + string.ascii_uppercase + string.ascii_lowercase
# After resizing, letters must still be told apart: the least width of one letter, in shares of a 16-pixel patch.
_LEAST_ADVANCE = 0.6
_MIN_CONTRAST = 110.0

_WORDS = Path(__file__).with_name("words.txt").read_text(encoding="utf-8").split()


@dataclass(frozen=True)
class Letter:
    """One printed letter: its middle, how much of the line it takes, and how tall the line's ink is."""

    letter: str
    x: float
    y: float
    width: float
    height: float


Word = tuple[Letter, ...]


@dataclass(frozen=True)
class Sign:
    """A drawn image and what is printed on it: one word or number, or many on a page."""

    width: int
    height: int
    words: tuple[Word, ...]
    image: Image.Image

    @property
    def text(self) -> str:
        """What is printed, word by word."""
        return " ".join("".join(letter.letter for letter in word) for word in self.words)


def pick_text(rng: random.Random, split: Split) -> str:
    """A word or a number of one to six characters; most words are made up, so that none can be guessed."""
    style = rng.random()
    length = rng.choice((1, 2, 2, 3, 3, 4, 4, 4, 5, 5, 5, 6, 6, 6))
    if style < 0.22:
        return "".join(rng.choice(string.digits) for _ in range(length))
    if style < 0.5:
        # One word in five is kept for evaluation.
        word = rng.choice([word for index, word in enumerate(_WORDS) if (index % 5 == 0) == (split is Split.HELD_OUT)])
    elif style < 0.75:
        word = "".join(rng.choice("BCDFGHJKLMNPQRSTVWXZ" if (i + length) % 2 else "AEIOUY") for i in range(length))
    else:
        word = "".join(rng.choice(string.ascii_uppercase) for _ in range(length))
    case = rng.random()
    # A small letter alone is often the same drawing as its capital.
    if case < 0.55 or len(word) < 2:
        return word
    return word.lower() if case < 0.85 else word.capitalize()


def draw_sign(rng: random.Random, split: Split, width: int, height: int) -> Sign:
    """A sign of that size in a font of the split."""
    image, samples = draw_background(rng, width, height)
    text = pick_text(rng, split)
    font = _fitting(rng, split, text, width, height)
    left, top, right, bottom = font.getbbox(text)
    slack_x, slack_y = width - (right - left), height - (bottom - top)
    # Printed words stand in the middle more often than anywhere else.
    across, down = (rng.triangular(0.06, 0.94, 0.5) for _ in range(2))
    x, y = across * slack_x - left, down * slack_y - top
    ink_box = (x + left, y + top, x + right, y + bottom)
    if rng.random() < 0.25:
        panel = _far_from(rng, samples, 40.0)
        pad = 0.25 * (bottom - top)
        box = (ink_box[0] - pad, ink_box[1] - pad, ink_box[2] + pad, ink_box[3] + pad)
        ImageDraw.Draw(image).rounded_rectangle(box, radius=rng.choice((0.0, pad)), fill=panel)
        samples = [panel]
    ink = _ink(rng, samples)
    pen = ImageDraw.Draw(image)
    pen.fontmode = "L" if rng.random() < 0.93 else "1"
    pen.text((x, y), text, font=font, fill=ink)
    word = _letters(font, text, (x, y))
    return Sign(width, height, (word,), as_photo(rng, image))


def draw_page(rng: random.Random, split: Split, width: int, height: int) -> Sign:
    """A page of that size, full of words in lines: many letters to learn from one picture."""
    image, samples = draw_background(rng, width, height)
    pen = ImageDraw.Draw(image)
    words: list[Word] = []
    patch = _patch(width, height)
    y = rng.uniform(0, patch)
    while True:
        font = pick_font(rng, split, max(8, round(patch * rng.uniform(1.4, 3.0))))
        ascent, descent = font.getmetrics()
        if y + ascent + descent > height and words:
            return Sign(width, height, tuple(words), as_photo(rng, image))
        ink = _ink(rng, samples)
        x = rng.uniform(0, patch)
        while True:
            text = pick_text(rng, split)
            while text and x + font.getlength(text) > width:
                text = text[:-1]
            if not text:
                break
            pen.text((x, y), text, font=font, fill=ink)
            words.append(_letters(font, text, (x, y)))
            x += font.getlength(text) + rng.uniform(0.7, 1.5) * patch
        y += ascent + descent + rng.uniform(0, 0.5 * patch)
        if y > height:
            return Sign(width, height, tuple(words), as_photo(rng, image))


def _letters(font: Font, text: str, start: tuple[float, float]) -> Word:
    """Where the letters of a text stand that is printed from a point on."""
    x, y = start
    _, top, _, bottom = font.getbbox(text)
    edges = [x + font.getlength(text[:index]) for index in range(len(text) + 1)]
    return tuple(
        Letter(letter, (left + right) / 2, y + (top + bottom) / 2, right - left, bottom - top)
        for letter, left, right in zip(text, edges, edges[1:], strict=False)
    )


def _patch(width: int, height: int) -> float:
    """A patch's edge in pixels of the drawn image: small images are enlarged for the encoder, large ones reduced."""
    shown = min(max(width * height, SHORTEST_EDGE), LONGEST_EDGE)
    return PATCH_SIZE * math.sqrt(width * height / shown)


def _fitting(rng: random.Random, split: Split, text: str, width: int, height: int) -> Font:
    """A font in which the text fits the image and its letters are neither tiny nor huge."""
    patch = _patch(width, height)
    while True:
        size = max(8, round(patch * rng.uniform(1.4, 3.4)))
        font = pick_font(rng, split, size)
        left, top, right, bottom = font.getbbox(text)
        shrink = min(1.0, 0.92 * width / (right - left), 0.8 * height / (bottom - top))
        if shrink < 1:
            # Long words in narrow images: as large as they can be, if that is not too small.
            size = max(8, int(size * shrink))
            font = font.font_variant(size=size)
            left, top, right, bottom = font.getbbox(text)
        if (right - left) / len(text) >= _LEAST_ADVANCE * patch and size >= 0.9 * patch:
            return font
        if len(text) * _LEAST_ADVANCE * patch > 0.85 * width:
            return font


def _ink(rng: random.Random, samples: list[Rgb]) -> Rgb:
    """Mostly black or white, whichever stands out more; now and then any colour that does."""
    if rng.random() < 0.2:
        return _far_from(rng, samples, _MIN_CONTRAST)
    shade = rng.randint(0, 30)
    dark, light = (shade,) * 3, (255 - shade,) * 3
    return max(dark, light, key=lambda ink: min(math.dist(ink, sample) for sample in samples))


def _far_from(rng: random.Random, samples: list[Rgb], distance: float) -> Rgb:
    """A colour that keeps that Euclidean distance in RGB from all samples: black, white, or any."""
    while True:
        style = rng.random()
        if style < 0.35:
            colour = (rng.randint(0, 25),) * 3
        elif style < 0.55:
            colour = (rng.randint(235, 255),) * 3
        else:
            colour = (rng.randint(0, 255), rng.randint(0, 255), rng.randint(0, 255))
        if min(math.dist(colour, sample) for sample in samples) >= distance:
            return colour
