"""Signs: a word or a number printed on a background, and pages of many, together with where each letter stands.

Lengths are in pixels of the drawn image, unless they are said to be in patches: shares of the encoder's 16-pixel patch
as the image is resized for it.
"""

from __future__ import annotations

import math
import random
import string
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image, ImageDraw

from demo.config import LONGEST_EDGE, PATCH_SIZE, SHORTEST_EDGE
from demo.fonts import Font, pick_font
from demo.scenes import Rgb, as_photo, contrast, draw_background
from demo.seeds import Split
from demo.sizes import Size

MAX_LETTERS = 6
LETTERS = string.digits + string.ascii_uppercase  # small letters are read as their capitals
# In patches: how wide a letter must be on average to be told from others, and the sizes of fonts.
_LEAST_ADVANCE = 1.2
_SMALLEST, _LARGEST = 1.8, 5.0
_LARGEST_SIGN = 9.0
_MIN_CONTRAST = 110.0

_ALL_WORDS = Path(__file__).with_name("words.txt").read_text(encoding="utf-8").split()
# One word in five is kept for evaluation.
WORDS = {
    Split.TRAIN: [word for index, word in enumerate(_ALL_WORDS) if index % 5],
    Split.HELD_OUT: _ALL_WORDS[::5],
}


@dataclass(frozen=True)
class Letter:
    """One printed letter, named by its capital: its middle, and the height and width of what it takes up."""

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
        """What is printed, in capitals, word by word."""
        return " ".join("".join(letter.letter for letter in word) for word in self.words)


def pick_text(rng: random.Random, split: Split) -> str:
    """A word or a number of two to six characters; many words are made up, so that none can be guessed."""
    style = rng.random()
    length = rng.choice((2, 3, 3, 4, 4, 4, 5, 5, 6, 6))
    if style < 0.25:
        return "".join(rng.choice(string.digits) for _ in range(length))
    if style < 0.6:
        word = rng.choice(WORDS[split])
    elif style < 0.85:
        word = "".join(rng.choice("BCDFGHJKLMNPQRSTVWXZ" if (i + length) % 2 else "AEIOUY") for i in range(length))
    else:
        word = "".join(rng.choice(string.ascii_uppercase) for _ in range(length))
    case = rng.random()
    if case < 0.6:
        return word
    return word.lower() if case < 0.85 else word.capitalize()


def draw_sign(rng: random.Random, split: Split, width: int, height: int) -> Sign:
    """A sign of that size in a font of the split, sometimes narrower or wider than the font is."""
    stretch = rng.uniform(0.78, 1.2) if rng.random() < 0.25 else 1.0
    return _stretched(_draw_sign(rng, split, round(width / stretch), height, _LEAST_ADVANCE / min(stretch, 1)), width)


def _stretched(sign: Sign, width: int) -> Sign:
    """The sign made so wide."""
    if sign.width == width:
        return sign
    factor = width / sign.width
    words = tuple(
        tuple(replace(letter, x=letter.x * factor, width=letter.width * factor) for letter in word)
        for word in sign.words
    )
    return Sign(width, sign.height, words, sign.image.resize((width, sign.height)))


def _draw_sign(rng: random.Random, split: Split, width: int, height: int, least_advance: float) -> Sign:
    image, samples = draw_background(rng, width, height)
    # What would be too small to read in a narrow picture is cut.
    text = pick_text(rng, split)[: max(1, int(0.92 * width / (1.05 * least_advance * _patch(width, height))))]
    font = _fitting(rng, split, text, (width, height), least_advance)
    left, top, right, bottom = font.getbbox(text)
    # Printed words stand in the middle more often than anywhere else.
    across, down = (rng.triangular(0.04, 0.96, 0.5) for _ in range(2))
    x, y = across * (width - right + left) - left, down * (height - bottom + top) - top
    pen = ImageDraw.Draw(image)
    ink = None
    if rng.random() < 0.4:
        samples, ink = _board(rng, image, (x + left, y + top, x + right, y + bottom), samples)
    pen.text((x, y), text, font=font, fill=ink or _ink(rng, samples))
    return Sign(width, height, (_letters(font, text, x, y),), as_photo(rng, image))


def _board(
    rng: random.Random, image: Image.Image, text: tuple[float, float, float, float], samples: list[Rgb]
) -> tuple[list[Rgb], Rgb]:
    """Draw what a word is printed on, from close around it to the whole picture, with or without a border.

    Returns:
        The colours under the word, and that of its ink.
    """
    (left, top, right, bottom), side = text, min(image.size)
    pad = rng.uniform(0.2, 0.6) * (bottom - top)
    inset = rng.uniform(0, 0.12) * side
    close = (left - pad, top - pad, right + pad, bottom + pad)
    whole = (inset, inset, image.width - 1 - inset, image.height - 1 - inset)
    wide = rng.choice((0.0, 0.0, rng.random(), 1.0))
    box = [a + wide * (pick(a, b) - a) for pick, a, b in zip((min, min, max, max), close, whole, strict=True)]
    filled = rng.random() < 0.8
    if filled:
        samples = [_far_from(rng, samples)]
    ink = _ink(rng, samples)
    border = rng.choice((ink, ink, (0, 0, 0), (255, 255, 255)))
    thick = round(rng.uniform(0.006, 0.035) * side) if rng.random() < 0.6 or not filled else 0
    ImageDraw.Draw(image).rounded_rectangle(
        box,
        radius=rng.choice((0.0, 0.0, rng.uniform(0.2, 1.0) * pad)),
        fill=samples[0] if filled else None,
        outline=border if thick else None,
        width=thick,
    )
    return samples, ink


def draw_page(rng: random.Random, split: Split, width: int, height: int) -> Sign:
    """A page of that size, full of words in lines: many letters to learn from one picture."""
    image, samples = draw_background(rng, width, height)
    pen = ImageDraw.Draw(image)
    patch = _patch(width, height)
    words: list[Word] = []
    y = rng.uniform(-0.5, 0.5) * patch
    while y < height:
        # Small letters are the ones that take long to learn.
        size = _SMALLEST * (_LARGEST / _SMALLEST) ** (rng.random() ** 1.6)
        font = pick_font(rng, split, max(8, round(patch * size)))
        ink = _ink(rng, samples)
        _, top, _, bottom = font.getbbox("H")
        x = rng.uniform(-1, 1) * patch
        while x < width:
            text = pick_text(rng, split)
            pen.text((x, y - top), text, font=font, fill=ink)
            words.append(_letters(font, text, x, y - top))
            x += font.getlength(text) + rng.uniform(0.4, 1.2) * patch
        y += (bottom - top) * rng.uniform(1.25, 1.8)
    return Sign(width, height, tuple(words), as_photo(rng, image))


def _letters(font: Font, text: str, x: float, y: float) -> Word:
    """Where the letters of a text stand that is printed from a point on: each as high as a capital."""
    _, top, _, bottom = font.getbbox("H")
    edges = [x + font.getlength(text[:index]) for index in range(len(text) + 1)]
    return tuple(
        Letter(letter, (left + right) / 2, y + (top + bottom) / 2, right - left, bottom - top)
        for letter, left, right in zip(text.upper(), edges, edges[1:], strict=False)
    )


def _patch(width: int, height: int) -> float:
    """A patch's edge in pixels of the drawn image: small images are enlarged for the encoder, large ones reduced."""
    shown = min(max(width * height, SHORTEST_EDGE), LONGEST_EDGE)
    return PATCH_SIZE * math.sqrt(width * height / shown)


def _fitting(rng: random.Random, split: Split, text: str, size: Size, least_advance: float) -> Font:
    """A font in which the text fits the image and its letters are neither tiny nor huge."""
    (width, height), patch = size, _patch(*size)
    font = pick_font(rng, split, 40)
    left, top, right, bottom = font.getbbox(text)
    largest = min(40 * min(0.94 * width / (right - left), 0.8 * height / (bottom - top)), _LARGEST_SIGN * patch)
    smallest = 40 * least_advance * patch / ((right - left) / len(text))
    return font.font_variant(
        size=max(8, round(min(smallest, largest) * (largest / min(smallest, largest)) ** rng.random()))
    )


def _ink(rng: random.Random, samples: list[Rgb]) -> Rgb:
    """Mostly black or white, whichever stands out more; now and then any colour that does."""
    if rng.random() < 0.25:
        return _far_from(rng, samples)
    return max((0, 0, 0), (255, 255, 255), key=lambda ink: contrast(ink, samples))


def _far_from(rng: random.Random, samples: list[Rgb]) -> Rgb:
    """Any colour that stands out from the samples."""
    while True:
        colour = (rng.randint(0, 255), rng.randint(0, 255), rng.randint(0, 255))
        if contrast(colour, samples) >= _MIN_CONTRAST:
            return colour
