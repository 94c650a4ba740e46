"""Pictures of several kinds, the same each time: what the encoder's types are measured on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_SIZE = (320, 256)
_LETTERS = np.array(list("abcdefghijklmnopqrstuvwxyz"))
_COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "black", "white")


def drawing(index: int) -> Image.Image:
    """Some shapes of one colour each on a plain ground."""
    draw = _draw(index)
    ground, *colours = draw.permutation(_COLOURS)[:4]
    image = Image.new("RGB", _SIZE, str(ground))
    for place, colour in enumerate(colours):
        left, top, side = (
            int(value) for value in draw.integers((10 + 100 * place, 20, 50), (25 + 100 * place, 150, 81))
        )
        box, canvas = (left, top, left + side, top + side), ImageDraw.Draw(image)
        match int(draw.integers(3)):
            case 0:
                canvas.ellipse(box, str(colour))
            case 1:
                canvas.rectangle(box, str(colour))
            case _:
                canvas.polygon([(left, top + side), (left + side // 2, top), (left + side, top + side)], str(colour))
    return image


def photograph(index: int) -> Image.Image:
    """Noise as smooth as a photograph: amplitudes fall with the frequency, and colours vary less than brightness."""
    width, height = _SIZE
    frequency = np.hypot(np.fft.fftfreq(height)[:, np.newaxis], np.fft.rfftfreq(width))
    frequency[0, 0] = 1 / width
    grain = np.fft.rfft2(_draw(index).standard_normal((4, height, width))) / frequency**1.4
    brightness, *colours = np.fft.irfft2(grain, (height, width))
    values = np.stack([brightness + 0.4 * colour for colour in colours], axis=-1)
    values = (values - values.mean()) / values.std()
    return Image.fromarray((128 + 50 * values).clip(0, 255).astype(np.uint8))


def page(index: int) -> Image.Image:
    """Lines of made-up words in black on white."""
    draw, image = _draw(index), Image.new("RGB", _SIZE, "white")
    font = ImageFont.load_default(13)
    for top in range(12, _SIZE[1] - 20, 18):
        words = ("".join(draw.choice(_LETTERS, draw.integers(2, 9))) for _ in range(7))
        ImageDraw.Draw(image).text((12, top), " ".join(words), "black", font)
    return image


def noise(index: int) -> Image.Image:
    """Every pixel drawn alone."""
    return Image.fromarray(_draw(index).integers(0, 256, (*_SIZE[::-1], 3), np.uint8))


KINDS: dict[str, Callable[[int], Image.Image]] = {
    "drawing": drawing,
    "photograph-like": photograph,
    "page of text": page,
    "noise": noise,
}


def _draw(index: int) -> np.random.Generator:
    return np.random.default_rng(index)
